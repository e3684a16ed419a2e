"""Rollouts of agents that live elsewhere: one request opens a rollout and gets its address and token, another ends it.

The gateway itself writes the spans `rollout.opened` (task, task_id, group) and `rollout.ended` (output, status, error), so no
token can change a task. A rollout may be ended again, also after a restart: each time a span is written, and the first
counts (sql/learn/production_rollouts.sql).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from lightning_core import names
from lightning_core.gateway.access import Access
from lightning_core.gateway.attempt_tokens import LIFETIME_S, mint
from lightning_core.gateway.call_span import encode_own, new_id
from lightning_core.gateway.http import HttpError, Receive, Scope, Send, invalid, json_response, read_body
from lightning_core.gateway.intake import Intake
from lightning_core.gateway.json_body import read_object
from lightning_core.otlp.proof import prove
from lightning_core.otlp.spans import STATUS_ERROR, STATUS_OK, SpanData
from lightning_core.spool.spool import Record

_ATTEMPT = "1"  # nobody runs another
_STATUSES = ("ok", "error", "timeout")
_ID_LENGTH = 1_000  # characters of `task_id` and `group`


@dataclass(frozen=True, slots=True)
class OpenedRollouts:
    access: Access
    intake: Intake

    async def open(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Open a rollout, by `{"task", "task_id", "group", "ttl_s"}`, all optional; it is on disk before the answer.

        Answers `{"rollout_id", "attempt_id", "path", "token", "proof", "expires"}`; `expires` is Unix time in seconds.
        """
        caller = self.access.identify_opener(scope)
        with self.intake.admitted(caller) as take:
            body = await read_body(scope, receive, self.intake.max_body, take)
            asked = await _read(body, ("task", "task_id", "group", "ttl_s"))
            expires = int(time.time() + _seconds(asked))
            rollout_id = f"opened-{secrets.token_hex(16)}"
            attributes = {
                names.TASK: _json(asked, "task"),
                names.TASK_ID: _name(asked, "task_id"),
                names.GROUP_ID: _name(asked, "group"),
                names.OPENER: "secret" if caller.sender == "secret" else caller.attempt_id,
            }
            await self._write(names.SPAN_ROLLOUT_OPENED, rollout_id, _ATTEMPT, attributes)
        secret = self.access.secret
        answer = {
            "rollout_id": rollout_id,
            "attempt_id": _ATTEMPT,
            "path": f"/rollouts/{rollout_id}/attempts/{_ATTEMPT}",
            "token": mint(secret, rollout_id, _ATTEMPT, "evaluate", expires, opened=True),
            "proof": prove(secret, rollout_id, _ATTEMPT, expires),
            "expires": expires,
        }
        return await json_response(answer).send(send)

    async def end(self, scope: Scope, receive: Receive, send: Send) -> int:
        """End the rollout, by `{"output", "status", "error"}`, all optional; it is on disk before the answer, `{}`."""
        caller = self.access.identify(scope)
        if not caller.opened or caller.rollout_id is None or caller.attempt_id is None:
            raise HttpError(
                403,
                "this rollout was not opened by `POST /v1/rollouts`: who runs it says how it ended",
                "permission_error",
                code="not_opened",
            )
        with self.intake.admitted(caller) as take:
            body = await read_body(scope, receive, self.intake.max_body, take)
            asked = await _read(body, ("output", "status", "error"))
            error = asked.get("error")
            if not isinstance(error, str | None):
                raise invalid("error", "`error` has to be a text that says what went wrong")
            status = asked.get("status", "ok" if error is None else "error")
            if status not in _STATUSES:
                raise invalid("status", f"`status` has to be one of {', '.join(_STATUSES)}")
            if status == "ok" and error is not None:
                raise invalid("error", "`error` is given and `status` is ok: leave one of the two out")
            attributes = {names.OUTPUT: _json(asked, "output"), names.STATUS: status, names.ERROR: error}
            await self._write(names.SPAN_ROLLOUT_ENDED, caller.rollout_id, caller.attempt_id, attributes)
        return await json_response({}).send(send)

    async def _write(self, name: str, rollout_id: str, attempt_id: str, attributes: Mapping[str, Any]) -> None:
        """Return once the span is on disk. Raises HttpError 503 where it cannot be written now."""
        now = time.time_ns()
        failed = attributes.get(names.STATUS, "ok") != "ok"
        span = SpanData(name, now, now, new_id(16), new_id(8), attributes=attributes)
        span.status, span.status_message = (STATUS_ERROR if failed else STATUS_OK), attributes.get(names.ERROR) or ""
        body = encode_own(rollout_id, attempt_id, span)
        await self.intake.store(Record(rollout_id, attempt_id, "path", now, "gateway", body))


async def _read(body: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON object that a body is, `{}` where it is empty; HttpError 400 for another field than these."""
    asked = await read_object(body) if body.strip() else {}
    for field in asked:
        if field not in fields:
            raise invalid(field, f"{field!r:.80} is no field here; there are {', '.join(fields)}")
    return asked


def _json(asked: Mapping[str, Any], field: str) -> str | None:
    return orjson.dumps(asked[field]).decode() if field in asked else None


def _name(asked: Mapping[str, Any], field: str) -> str | None:
    found = asked.get(field)
    if found is None:
        return None
    if not isinstance(found, str) or not 0 < len(found) <= _ID_LENGTH:
        raise invalid(field, f"`{field}` has to be a text of 1 to {_ID_LENGTH:,} characters")
    return found


def _seconds(asked: Mapping[str, Any]) -> float:
    found = asked.get("ttl_s")
    if found is None:
        return LIFETIME_S
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= LIFETIME_S:
        raise invalid("ttl_s", f"`ttl_s` has to be a number of seconds above 0, at most {LIFETIME_S:.0f} (30 days)")
    return float(found)
