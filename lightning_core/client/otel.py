"""The way through OpenTelemetry, for a process that has set it up itself and was given no endpoint of ours.

The reward is then a span like the agent's own: it goes wherever the configured exporter sends them, and is as safe as
they are (a batch that is not flushed before the process dies is lost). Nothing is imported from here: where the agent has
not imported OpenTelemetry there is none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

_NOT_SET_UP = ("ProxyTracerProvider", "NoOpTracerProvider", "_DefaultTracerProvider")


def tracer() -> Any | None:
    """Return OpenTelemetry's tracer.

    None where this process has no provider, or where `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or trace is None or not hasattr(trace, "get_tracer_provider"):
        return None
    provider = trace.get_tracer_provider()
    return None if type(provider).__name__ in _NOT_SET_UP else provider.get_tracer("lightning-flows")


def below(trace_id: str, span_id: str) -> Any:
    """Return a context in which the span of these ids is current."""
    trace = sys.modules["opentelemetry.trace"]
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    context = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(context))


def fail(span: Any, message: str) -> None:
    """Mark a span of OpenTelemetry as failed by this."""
    trace = sys.modules["opentelemetry.trace"]
    span.set_status(trace.Status(trace.StatusCode.ERROR, message))


def attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as OpenTelemetry takes them.

    `None` is left out; what is no text, bytes, number, boolean or list of texts becomes JSON.
    """
    return {str(key): _value(value) for key, value in values.items() if value is not None}


def _value(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return list(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # keys that JSON does not know, a mapping that holds itself
        return str(value)
