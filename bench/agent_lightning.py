"""Agent Lightning's span store, to measure against. Runs in its own environment (`make oracle-env`), imports nothing
of ours; `bench.peer` starts it.

    serve N            its store server over OTLP/HTTP; prints {"url", "scopes": [[rollout, attempt], …]}, runs until
                       stdin ends, prints {"spans"} that it has then
    memory FILE …      seconds that `add_many_spans` takes for the OTLP requests in FILEs, one batch each; prints
                       {"spans", "seconds"}. Decoding them is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from pathlib import Path

from agentlightning.store.client_server import LightningStoreServer
from agentlightning.store.memory import InMemoryLightningStore
from agentlightning.utils.otlp import spans_from_proto
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


async def scopes(store: InMemoryLightningStore, n: int) -> list[tuple[str, str]]:
    started = [await store.start_rollout(input={"n": i}) for i in range(n)]
    return [(s.rollout_id, s.attempt.attempt_id) for s in started]


async def serve(n: int) -> None:
    """As its own command `agl store` sets it up."""
    store = InMemoryLightningStore(thread_safe=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = LightningStoreServer(store, host="127.0.0.1", port=port, launch_mode="asyncio")
    made = await scopes(store, n)
    await server.start()
    print(json.dumps({"url": server.otlp_traces_endpoint(), "scopes": made}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({"spans": (await store.statistics())["total_spans"]}), flush=True)
    await server.stop()


async def memory(files: list[Path]) -> None:
    store = InMemoryLightningStore(thread_safe=True)
    seconds, spans = 0.0, 0
    for file, (rollout, attempt) in zip(files, await scopes(store, len(files)), strict=True):
        request = ExportTraceServiceRequest.FromString(file.read_bytes())
        for key, value in (("agentlightning.rollout_id", rollout), ("agentlightning.attempt_id", attempt)):
            request.resource_spans[0].resource.attributes.add(key=key).value.string_value = value
        batch = await spans_from_proto(request, store.get_many_span_sequence_ids)
        began = time.perf_counter()
        stored = await store.add_many_spans(batch)
        seconds += time.perf_counter() - began
        spans += len(stored)
    print(json.dumps({"spans": spans, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("n", type=int)
    commands.add_parser("memory").add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    asyncio.run(serve(options.n) if options.command == "serve" else memory(options.files))
