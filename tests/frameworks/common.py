"""What the agents of every framework share. Runs in the framework's own environment: nothing of ours is imported."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

PLANNER = "You plan. Look up what is asked for."
EXECUTOR = "You carry out plans. Divide where you are told to."
QUESTION = "How many apples does each of two people get?"


def tracing() -> TracerProvider:
    """OpenTelemetry as a user sets it up: everything else comes from the environment of the attempt."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def lookup(topic: str) -> str:
    """Look a topic up."""
    return f"there are 6 {topic}"


def divide(a: int, b: int) -> float:
    """Divide a by b."""
    return a / b
