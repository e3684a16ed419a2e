"""Runs the real frameworks, each in an environment of its own, and keeps the spans they emit as test data.

    make framework-dumps                       # all of them
    make framework-dumps ARGS="pydantic_ai"    # those named

A folder beside this file is a framework: `requirements.txt`, and `agent.py`, which gets the variant ("sequential" or
"parallel") as its task. It runs as any command does: an attempt of the real runner, behind the real server, whose
upstream follows a script (scripted_vllm.py). What the server took, gateway spans and all, is scrubbed of this machine
and written to tests/data/frameworks/<name>.jsonl.gz, one OTLP request a line.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lightning_core.agents.attempt import AttemptSpec
from lightning_core.agents.runner import Runner
from lightning_core.config import AgentSettings
from lightning_core.lake.spool import Record
from tests.frameworks.scripted_vllm import ScriptedVllm
from tests.gateway_rig import Rig, rig

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DUMPS = HERE.parent / "data" / "frameworks"
ENVIRONMENTS = ROOT / "var" / "frameworks"
MACHINE = re.compile(r"^(host|process|os|service\.instance|container|k8s)\.")
ENVIRONMENT = {
    "PYTHONPATH": str(HERE),
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
}


def variants(name: str) -> list[str]:
    return ["sequential", "parallel"] if '"parallel"' in (HERE / name / "agent.py").read_text() else ["sequential"]


def environment(name: str) -> Path:
    """Python of the framework's environment, made where there is none for these requirements."""
    home, requirements = ENVIRONMENTS / name, HERE / name / "requirements.txt"
    ready = home / "ready"
    if not ready.exists() or ready.read_text() != requirements.read_text():
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, home], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", home / "bin" / "python", "--requirement", requirements]
        subprocess.run(install, check=True)
        ready.write_text(requirements.read_text())
    return home / "bin" / "python"


def run(server: Rig, name: str, variant: str, python: Path) -> None:
    rollout, attempt = f"{name}.{variant}", "a1"
    token = server.handle.mint(rollout, attempt, "train")
    url = server.handle.attempt_url(rollout, attempt)
    spec = AttemptSpec("run", 0, "train", rollout, attempt, name, name, {"variant": variant}, url, token)
    command = [str(python), str(HERE / name / "agent.py")]
    settings = AgentSettings(command=command, environment=ENVIRONMENT, timeout_s=180)
    with Runner(settings, logs=server.home / "logs") as runner:
        result = runner.run(spec)
    if result.status != "ok":
        logs = "\n".join(path.read_text()[-6000:] for path in (server.home / "logs").rglob("*") if path.is_file())
        raise RuntimeError(f"{rollout}: {result.status}: {result.error}\n{logs}")


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
        (ENVIRONMENTS, "/environments"),
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
    python = environment(name)
    with tempfile.TemporaryDirectory() as home, rig(Path(home)) as server:
        upstream = ScriptedVllm()
        server.upstream = server.on_loop(upstream.start())
        server.route()
        try:
            for variant in variants(name):
                run(server, name, variant, python)
        finally:
            server.on_loop(upstream.stop())
        lines = [json.dumps(scrub(record)) + "\n" for record in server.records()]
    DUMPS.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(DUMPS / f"{name}.jsonl.gz", "wb", mtime=0) as file:
        file.write("".join(lines).encode())


def frameworks() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/requirements.txt"))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or frameworks():
        print(chosen, flush=True)
        dump(chosen)
