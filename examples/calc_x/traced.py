"""agent.py with AutoGen's own instrumentation, which wants a tracer provider and nothing else."""

import asyncio
import json
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)

import agent  # noqa: E402 - what it imports is instrumented by now

run = agent.run

if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
