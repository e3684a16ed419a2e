"""What an agent process may import to give rewards, and to open a rollout by itself.

It needs the standard library only, and of this project `names` and `otlp.spans` alone.

    from lightning_core.client import emit_message, emit_reward, prompt, span
    with span("plan", **{"gen_ai.agent.name": "planner"}) as plan:
        emit_message("two of three sources agree")
    emit_reward(0.5, name="plan-is-valid", span=plan)

    prompt("writer", customer="ACME")  # its current version: docs/prompts.md

An agent that wants none of it needs none of it: rewards can also come from `reward:` in the settings.

Rooms:
    emit.py      what an agent calls               delivery.py     how spans leave a process
    opened.py    a rollout of an agent elsewhere    destination.py  where they go
    fallback.py  spans that wait for the gateway    http.py         one HTTP request
    otel.py      through OpenTelemetry's own exporter    prompts.py  the prompts that it is served
"""

from lightning_core.client.delivery import DeliveryError, post_spans
from lightning_core.client.emit import (
    Span,
    emit_event,
    emit_exception,
    emit_message,
    emit_object,
    emit_reward,
    span,
)
from lightning_core.client.opened import Rollout, open_rollout, rollout
from lightning_core.client.prompts import prompt
from lightning_core.otlp.spans import STATUS_ERROR, STATUS_OK, STATUS_UNSET, SpanData, new_span_id, new_trace_id

__all__ = [
    "STATUS_ERROR",
    "STATUS_OK",
    "STATUS_UNSET",
    "DeliveryError",
    "Rollout",
    "Span",
    "SpanData",
    "emit_event",
    "emit_exception",
    "emit_message",
    "emit_object",
    "emit_reward",
    "new_span_id",
    "new_trace_id",
    "open_rollout",
    "post_spans",
    "prompt",
    "rollout",
    "span",
]
