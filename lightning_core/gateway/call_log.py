"""One JSON line a call in the gateway's log. No text of requests or replies is in it unless the settings ask for it."""

from __future__ import annotations

import logging
from typing import Literal

import orjson

from lightning_core.gateway.call_span import Asked, Outcome
from lightning_core.gateway.reply import Collected

log = logging.getLogger("lightning_core.gateway.calls")


def log_call(
    how: Literal["off", "facts", "text"], asked: Asked, collected: Collected, result: Outcome, outcome: str
) -> None:
    if how == "off" or not log.isEnabledFor(logging.INFO):
        return
    line = {
        "rollout": asked.caller.rollout_id,
        "attempt": asked.caller.attempt_id,
        "api": asked.api_format.api,
        "model": asked.target.asked,
        "served_by": asked.target.label,
        "version": result.versions,
        "outcome": outcome,
        "response_id": asked.api_format.response_id or collected.response_id,
        "finish": [choice.finish_reason for choice in collected.ordered()],
        "prompt_tokens": collected.usage.get("prompt_tokens"),
        "completion_tokens": collected.usage.get("completion_tokens"),
        "first_token_ms": result.first_token_ms,
        "ms": (result.end_ns - result.start_ns) / 1e6,
    }
    if how == "text":
        request = asked.request
        line["input"] = request.get("messages") or request.get("prompt") or request.get("input")
        line["output"] = [choice.message for choice in collected.ordered()]
        line["failure"] = result.failure
    log.info("%s", orjson.dumps(line).decode())
