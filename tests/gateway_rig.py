"""The real server process in front of the canned upstream, for tests."""

from __future__ import annotations

import asyncio
import gc
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psutil
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from lightning_core.config import GatewaySettings
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.spool import spool
from tests.canned_vllm import CannedVllm

T = TypeVar("T")


@dataclass
class Rig:
    """`canned` runs in an event loop of its own thread; `on_loop` runs a coroutine there."""

    home: Path
    canned: CannedVllm
    loop: asyncio.AbstractEventLoop
    handle: GatewayHandle = field(init=False)
    upstream: str = ""

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def start(self, **settings: Any) -> GatewayHandle:
        self.handle = GatewayHandle.start(self.home, GatewaySettings(**settings), self.home / "logs" / "gateway.log")
        return self.handle

    def route(self, **changes: Any) -> None:
        policy = {"upstream": self.upstream, "model": "policy-v0003", "version": "v0003"} | changes
        self.handle.set_routes({"policies": {"policy": policy}})

    def alias(self, aliases: dict[str, str], **policies: dict[str, Any]) -> None:
        """Routes with these aliases, to `policy` and to others like it, each with its changes."""
        policy = {"upstream": self.upstream, "model": "policy-v0003", "version": "v0003"}
        routes = {name: policy | policies.get(name, {}) for name in {"policy": None} | policies}
        self.handle.set_routes({"policies": routes, "aliases": aliases})

    @contextmanager
    def beside(self) -> Iterator[tuple[str, CannedVllm]]:
        """Another canned upstream: (its address, it)."""
        other = CannedVllm()
        try:
            yield self.on_loop(other.start()), other
        finally:
            self.on_loop(other.stop())

    def base_url(self, rollout: str = "r.1", attempt: str = "a1") -> str:
        return self.handle.attempt_url(rollout, attempt) + "/v1"

    def gate(self, canned: CannedVllm | None = None) -> None:
        """Hold replies back until `open`."""

        async def make() -> None:
            (canned or self.canned).gate = asyncio.Event()

        self.on_loop(make())

    def open(self, canned: CannedVllm | None = None) -> None:
        gate = (canned or self.canned).gate
        assert gate is not None
        self.loop.call_soon_threadsafe(gate.set)

    def reset(self) -> None:
        self.canned.__init__()  # type: ignore[misc]

    def records(self) -> list[spool.Record]:
        return [record for _, _, record in spool.read(self.home / "spool", 0)]

    def spans(self) -> list[Span]:
        return [span for record in self.records() for span in spans_of(record.body)]


def spans_of(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    return [span for r in request.resource_spans for s in r.scope_spans for span in s.spans]


def attributes(span: Span) -> dict[str, Any]:
    """Plain values; bytes stay bytes, arrays become lists."""
    plain: dict[str, Any] = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind or "string_value")
        plain[item.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return plain


def int32(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}i", data))


def float32(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 4}f", data))


@contextmanager
def rig(home: Path, unix: bool = False, **settings: Any) -> Iterator[Rig]:
    """A server with one policy, `policy`, version v0003, served by a canned upstream."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    made = Rig(home, CannedVllm(), loop)
    try:
        made.upstream = made.on_loop(made.canned.start(str(home / "v.sock") if unix else None))
        made.start(**settings)
        try:
            made.route()
            yield made
        finally:
            made.handle.stop()
    finally:
        made.on_loop(made.canned.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def client(
    server: Rig, rollout: str = "r.1", attempt: str = "a1", mode: Any = "train", retries: int = 0, **options: Any
) -> openai.OpenAI:
    """OpenAI's own client, as an attempt would make it."""
    token = server.handle.mint(rollout, attempt, mode)
    return openai.OpenAI(base_url=server.base_url(rollout, attempt), api_key=token, max_retries=retries, **options)


def last(server: Rig) -> dict[str, Any]:
    """Attributes of the newest span."""
    return attributes(server.spans()[-1])


def metric(server: Rig, name: str) -> float:
    """The sum over the labels of what `/metrics` says; the connection is closed after it."""
    lines = httpx.get(server.handle.url + "/metrics", headers={"Connection": "close"}).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def left_quiet(running: Rig) -> Iterator[None]:
    """Around a test: before and after it nothing is under way, and as many sockets are open."""
    running.canned.requests.clear()
    running.canned.gate, running.canned.break_after = None, None
    yield
    gc.collect()  # clients that a test made keep their connections until then
    wait_for(lambda: metric(running, "lightning_calls_in_flight") == 0)
    process = psutil.Process(running.handle.pid)
    # What stays: two listeners, two connections of the handle, and one to the upstream, for the next call.
    wait_for(lambda: len(process.net_connections("tcp")) <= 5)


def wait_for(condition: Callable[[], Any], seconds: float = 20, every: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(every)
