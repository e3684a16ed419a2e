"""Calls that are refused before they begin: an unknown model, a budget, a full queue, media that are not fetched.

The first refusal of each kind is a span of its attempt, so the tables know why an agent went no further; an agent that runs
against a limit for ever must not fill the spool, so the others are counted only (`AttemptStats.refused`, /metrics).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from lightning_core import names
from lightning_core.gateway.access import Caller
from lightning_core.gateway.call_span import OPERATIONS, encode
from lightning_core.gateway.http import HttpError, Scope, header
from lightning_core.gateway.sampling import Kind
from lightning_core.gateway.stats import Stats
from lightning_core.spool.spool import Record, SpoolError, SpoolWriter

log = logging.getLogger(__name__)


async def note_refusal(
    spool: SpoolWriter,
    stats: Stats,
    caller: Caller,
    kind: Kind,
    request: Mapping[str, Any],
    policy: str | None,
    scope: Scope,
    error: HttpError,
) -> None:
    """Count the refusal for its attempt, and make the first of its code a durable span."""
    if caller.rollout_id is None or caller.attempt_id is None:
        return
    code = str(error.code or error.status)
    seen = stats.attempt(caller.rollout_id, caller.attempt_id).refused
    seen[code] = seen.get(code, 0) + 1
    if seen[code] > 1:
        return
    now, model = time.time_ns(), request.get("model")  # of a request that was not read nobody knows it
    attributes: dict[str, str | None] = {
        names.GEN_AI_OPERATION: OPERATIONS[kind],
        names.GEN_AI_REQUEST_MODEL: model,
        names.POLICY: policy,
        names.UNTRAINABLE: "refused",
        names.ERROR_TYPE: code,
    }
    body = encode(
        caller, kind, policy or model or "unread", header(scope, b"traceparent"), (now, now), attributes, error.message
    )
    try:
        await spool.append(Record(caller.rollout_id, caller.attempt_id, caller.scope, now, "gateway", body))
    except SpoolError as problem:
        stats.refused.inc()
        log.warning("a refusal (%s) of rollout %s was not stored: %s", code, caller.rollout_id, problem)
    else:
        stats.spooled_calls.inc(len(body))
