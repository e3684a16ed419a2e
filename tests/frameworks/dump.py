"""Runs the examples of the real frameworks and keeps the spans they emit as test data.

    make framework-dumps                       # all of them
    make framework-dumps ARGS="pydantic_ai"    # those named

Each is a case of cases.py that is instrumented. It runs as any command does: an attempt of the real runner, behind the real
server, whose upstream follows a script (scripted_vllm.py). What the server took, gateway spans and all, is scrubbed of this
machine and written to tests/data/frameworks/<name>.jsonl.gz, one OTLP request a line.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lightning_core.agents.attempt import AttemptSpec
from lightning_core.agents.runner import Runner
from lightning_core.spool.spool import Record
from tests.frameworks.cases import CASES, ROOT, TASKS, Case
from tests.frameworks.scripted_vllm import ScriptedVllm
from tests.gateway_rig import Rig, rig

DUMPS = Path(__file__).parents[1] / "data" / "frameworks"
MACHINE = re.compile(r"^(host|process|os|service\.instance|container|k8s)\.")


def run(server: Rig, case: Case) -> None:
    settings = case.settings(server.home).agent
    often = settings.environment | {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    with Runner(settings.model_copy(update={"environment": often}), logs=server.home / "logs") as runner:
        for variant, task in TASKS.items():
            rollout, attempt = f"{case.name}.{variant}", "a1"
            token, secret = server.handle.mint(rollout, attempt, "train"), server.handle.secret
            url = server.handle.attempt_url(rollout, attempt)
            spec = AttemptSpec("run", 0, "train", rollout, attempt, case.name, case.name, task, url, token, secret)
            result = runner.run(spec)
            if result.status != "ok":
                logs = (path.read_text()[-6000:] for path in (server.home / "logs").rglob("*") if path.is_file())
                raise RuntimeError(f"{rollout}: {result.status}: {result.error}\n" + "\n".join(logs))


def scrub(record: Record) -> dict[str, Any]:
    """The record as a line of a dump, without what would tell of the machine it ran on."""
    request = ExportTraceServiceRequest.FromString(record.body)
    for resource_spans in request.resource_spans:
        attributes = resource_spans.resource.attributes
        kept = [item for item in attributes if not MACHINE.match(item.key)]
        del attributes[:]
        attributes.extend(kept)
        for span in (span for scope_spans in resource_spans.scope_spans for span in scope_spans.spans):
            for trace in (a.value for e in span.events for a in e.attributes if a.key == "exception.stacktrace"):
                trace.string_value = trace.string_value.strip().rpartition("\n")[2]
    text = json.dumps(MessageToDict(request))
    for path, shown in (
        (ROOT / "var" / "environments", "/environments"),
        (ROOT, "/repository"),
        (Path(tempfile.gettempdir()), "/temporary"),
    ):
        text = text.replace(str(path), shown)
    text = re.sub(r"/(root|home/\w+|usr/local|usr|opt)/[\w./-]*", "/python", text)
    return {
        "rollout_id": record.rollout_id,
        "attempt_id": record.attempt_id,
        "scope": record.scope,
        "received_ns": record.received_ns,
        "source": record.source,
        "request": json.loads(text),
    }


def load(name: str) -> list[Record]:
    """The records of a dump."""
    with gzip.open(DUMPS / f"{name}.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Record(body=ParseDict(row.pop("request"), ExportTraceServiceRequest()).SerializeToString(), **row)
        for row in rows
    ]


def dump(name: str) -> None:
    with tempfile.TemporaryDirectory() as home, rig(Path(home)) as server:
        upstream = ScriptedVllm()
        server.upstream = server.on_loop(upstream.start())
        server.route()
        try:
            run(server, CASES[name])
        finally:
            server.on_loop(upstream.stop())
        lines = [json.dumps(scrub(record)) + "\n" for record in server.records()]
    DUMPS.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(DUMPS / f"{name}.jsonl.gz", "wb", mtime=0) as file:
        file.write("".join(lines).encode())


def frameworks() -> list[str]:
    return sorted(case.name for case in CASES.values() if case.command.startswith("traced"))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or frameworks():
        print(chosen, flush=True)
        dump(chosen)
