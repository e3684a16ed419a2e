"""What an agent process may import to give rewards: standard library only, no other part of this project but `names`.

    from lightning_core.client import emit_reward, span
    with span("plan", **{"gen_ai.agent.name": "planner"}):
        emit_reward(0.5, name="plan-is-valid")

An agent that wants none of it needs none of it: rewards can also come from `reward:` in the settings.

Rooms:
    emit.py        what an agent calls              wire.py        spans, and how they leave a process
    span_bytes.py  spans as OTLP bytes              http.py        one HTTP request
    fallback.py    spans that wait for the server   otel.py        through OpenTelemetry's own exporter
"""

from lightning_core.client.emit import Span, emit_event, emit_reward, span
from lightning_core.client.wire import (
    STATUS_ERROR,
    STATUS_OK,
    STATUS_UNSET,
    DeliveryError,
    SpanData,
    new_span_id,
    new_trace_id,
    post_spans,
)

__all__ = [
    "STATUS_ERROR",
    "STATUS_OK",
    "STATUS_UNSET",
    "DeliveryError",
    "Span",
    "SpanData",
    "emit_event",
    "emit_reward",
    "new_span_id",
    "new_trace_id",
    "post_spans",
    "span",
]
