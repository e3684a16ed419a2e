"""The OpenAI API in front of vLLM, and of other APIs that the settings name: every call leaves a durable span.

Here a request is read, its caller known, its model resolved, its size and place in the queue checked; `call.py` serves it.
Left out on purpose: everything administrative, which answers 404.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from lightning_core.config import GatewaySettings
from lightning_core.gateway.access import Access, Caller
from lightning_core.gateway.admission import Admission
from lightning_core.gateway.api_format import ApiFormat
from lightning_core.gateway.call import Call, question
from lightning_core.gateway.call_span import Asked, encode_refusal
from lightning_core.gateway.http import (
    UNAVAILABLE,
    Handle,
    HttpError,
    Receive,
    Scope,
    Send,
    Take,
    declared_size,
    header,
    json_response,
    read_body,
    until_gone,
)
from lightning_core.gateway.json_body import AT_ONCE, read_object, read_value
from lightning_core.gateway.media import check_media
from lightning_core.gateway.prompts import Prompts
from lightning_core.gateway.responses_reply import ResponsesFormat, as_items, new_response_id
from lightning_core.gateway.responses_request import to_chat
from lightning_core.gateway.responses_store import ResponseStore, Turn
from lightning_core.gateway.room import Room
from lightning_core.gateway.sampling import Kind, check_choices, prepare
from lightning_core.gateway.stats import UNREAD, Stats
from lightning_core.gateway.targets import Target, Targets
from lightning_core.gateway.upstream import Upstreams
from lightning_core.spool.spool import Record, SpoolError, SpoolWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """What all calls share."""

    access: Access
    settings: GatewaySettings
    spool: SpoolWriter
    targets: Targets
    upstreams: Upstreams
    admission: Admission
    responses: ResponseStore
    prompts: Prompts
    stats: Stats
    room: Room
    max_body: int

    async def models(self, scope: Scope, receive: Receive, send: Send) -> int:
        self.access.identify(scope)
        data = [_model(name) for name in self.targets.names()]
        return await json_response({"object": "list", "data": data}).send(send)

    async def model(self, scope: Scope, receive: Receive, send: Send) -> int:
        caller = self.access.identify(scope)
        target = self.targets.resolve(scope["path_params"]["model"], caller)
        return await json_response(_model(target.asked)).send(send)

    def serves(self, kind: Kind, needed: str) -> Handle:
        """Return the handler of an API that upstreams speak themselves; a request has to have the field `needed`."""

        async def handle(scope: Scope, receive: Receive, send: Send) -> int:
            async with self._request(scope, receive, kind, needed) as (caller, request, _):
                return await self._serve(caller, kind, request, ApiFormat(kind), scope, send)

        return handle

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Serve `POST /v1/responses`: the upstream is asked for chat, whichever policy or upstream serves it."""
        async with self._request(scope, receive, "chat", "input") as (caller, request, take):
            try:
                chat, turn = await self._as_chat(request, caller, take)
            except HttpError as error:
                await self._refused(caller, "chat", request, scope, error)
                raise
            api_format = ResponsesFormat(request, self.responses, turn)
            return await self._serve(caller, "chat", chat, api_format, scope, send)

    async def _as_chat(self, request: dict[str, Any], caller: Caller, take: Take) -> tuple[dict[str, Any], Turn]:
        previous = request.get("previous_response_id")
        history = b"[]" if previous is None else self.responses.history(str(previous), caller, take)
        if history is None:
            raise HttpError(
                404,
                f"Previous response with id {previous!r} not found: it was not stored, is another attempt's, or so old "
                "that it was forgotten",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        turns = await read_value(history)
        chat, added = to_chat(request, [message for turn in turns for message in turn])
        return chat, Turn(new_response_id(), caller, previous, added, as_items(request["input"]))

    async def _refused(
        self, caller: Caller, kind: Kind, request: dict[str, Any], scope: Scope, error: HttpError
    ) -> None:
        """Count a call that does not begin for its attempt, and make the first of its code a durable span.

        `request` is empty where it was not read.
        """
        if caller.rollout_id is None or caller.attempt_id is None:
            return
        attempt = self.stats.attempt(caller.rollout_id, caller.attempt_id)
        if error.code == UNAVAILABLE:  # an agent that gives up on it did not fail by itself
            attempt.failed(error.message, question(request) if request else UNREAD)
        code = str(error.code or error.status)
        attempt.refused[code] = attempt.refused.get(code, 0) + 1
        if attempt.refused[code] > 1:  # an agent that runs against a limit for ever must not fill the spool
            return
        policy = self.targets.policy_of(request["model"]) if request else None
        traceparent = header(scope, b"traceparent")
        now, body = time.time_ns(), encode_refusal(caller, kind, request, policy, traceparent, error)
        try:
            await self.spool.append(Record(caller.rollout_id, caller.attempt_id, caller.scope, now, "gateway", body))
        except SpoolError as problem:
            self.stats.refused.inc()
            log.warning("a refusal (%s) of rollout %s was not stored: %s", code, caller.rollout_id, problem)
        else:
            self.stats.spooled_calls.inc(len(body))

    @contextlib.asynccontextmanager
    async def _request(
        self, scope: Scope, receive: Receive, kind: Kind, needed: str
    ) -> AsyncIterator[tuple[Caller, dict[str, Any], Take]]:
        """Read who asks, and what: a request with a model and the field `needed`. Its room is held for the call's life.

        A large request is not read where the attempt may make no call.
        """
        caller = self.access.identify(scope)
        with self.room.holding(caller) as take:
            try:
                if declared_size(scope) > AT_ONCE:
                    self.admission.check(caller, "unread")
                body = await read_body(scope, receive, self.max_body, take)
            except HttpError as error:
                if error.status in (429, 503):
                    await self._refused(caller, kind, {}, scope, error)
                raise
            request = await read_object(body)
            del body
            if not isinstance(request.get("model"), str):
                raise HttpError(400, "you must provide a model parameter", param="model")
            if needed not in request:
                raise HttpError(400, f"you must provide `{needed}`", param=needed)
            yield caller, request, take

    async def _target(self, caller: Caller, kind: Kind, request: dict[str, Any]) -> Target:
        """Return where the call goes; HttpError where it may not go anywhere.

        Nothing is awaited after it is known: a deploy unloads what no call that is under way goes to.
        """
        check_choices(request)
        await check_media(request.get("messages"), self.settings.media_urls)
        target = self.targets.resolve(request["model"], caller)
        if target.policy is not None and kind == "embeddings":
            raise HttpError(
                404,
                f"`{request['model']}` is answered by policy `{target.policy}`, which gives no embeddings; name a model "
                "that does in gateway.upstreams",
                code="model_not_found",
                param="model",
            )
        return target

    async def _serve(
        self,
        caller: Caller,
        kind: Kind,
        request: dict[str, Any],
        api_format: ApiFormat,
        scope: Scope,
        send: Send,
    ) -> int:
        try:
            target = await self._target(caller, kind, request)
            self.admission.check(caller, target.label)
            served = self.prompts.serve(request, caller.prompts)
        except HttpError as error:
            await self._refused(caller, kind, request, scope, error)
            raise
        prepared = prepare(served.request, kind, target.route, caller.mode, target.model)
        call = Call(self, Asked(caller, target, request, prepared, api_format, served), scope, send)
        return await until_gone(scope, call.run())


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "lightning-flows"}
