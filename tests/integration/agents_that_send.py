"""Agents that send spans without end, for test_durability.py: `python -m tests.integration.agents_that_send http …`.

Arguments: kind (http, grpc or client), endpoint, a file for what was acknowledged, a file that says stop once it is
there. $SEND_PAUSE_S slows them down. Each span has a name of its own; a line of the first file is the name of a span that the server took.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from lightning_core.client import emit_event

PAUSE_S = float(os.environ.get("SEND_PAUSE_S", "0"))


class Noting(SpanExporter):
    """The SDK's exporter, with a note of what it reports as delivered."""

    def __init__(self, exporter: SpanExporter, notes: TextIO) -> None:
        self._exporter = exporter
        self._notes = notes

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._notes.writelines(f"{span.name}\n" for span in spans)
            self._notes.flush()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def with_the_sdk(kind: str, endpoint: str, notes: TextIO, stop: Path) -> None:
    exporter: Any
    if kind == "http":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=endpoint + "/v1/traces", timeout=30)
    else:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        exporter = GrpcExporter(endpoint=endpoint, insecure=True, timeout=30)
    provider = TracerProvider()
    processor = BatchSpanProcessor(
        Noting(exporter, notes), max_queue_size=1 << 20, max_export_batch_size=64, schedule_delay_millis=20
    )
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("agent")
    for number in itertools.count():
        tracer.start_span(f"{kind} {number}", attributes={"text": "x" * 2_000}).end()
        if number % 10 == 0:
            time.sleep(0.01 + PAUSE_S)
            if stop.exists():
                break
    processor.force_flush(60_000)
    provider.shutdown()


def with_our_client(endpoint: str, notes: TextIO, stop: Path) -> None:
    """What `emit_event` could not send waits in its file and goes out later: every event counts as taken."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    for number in itertools.count():
        emit_event(f"client {number}", text="x" * 2_000)
        notes.write(f"client {number}\n")
        time.sleep(PAUSE_S)
        if stop.exists():
            break


def main() -> None:
    kind, endpoint, notes, stop = sys.argv[1:]
    with Path(notes).open("w") as file:
        if kind == "client":
            with_our_client(endpoint, file, Path(stop))
        else:
            with_the_sdk(kind, endpoint, file, Path(stop))


if __name__ == "__main__":
    main()
