"""The OpenAI API in front of vLLM, and of other APIs that the settings name: every call leaves a durable span.

Here a request is read, its caller known, its model resolved, its size and place in the queue checked; `call.py` serves it.
Left out on purpose: everything administrative, which answers 404.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import orjson

from lightning_core.config import GatewaySettings
from lightning_core.gateway.access import Access, Caller
from lightning_core.gateway.admission import Admission
from lightning_core.gateway.api_format import ApiFormat, PlainFormat
from lightning_core.gateway.call import Asked, Call
from lightning_core.gateway.drift import DriftMemory
from lightning_core.gateway.http import HttpError, Receive, Scope, Send, json_response, read_body, until_gone
from lightning_core.gateway.media import check_media
from lightning_core.gateway.refusal import note_refusal
from lightning_core.gateway.responses_reply import ResponsesFormat, as_items, new_response_id
from lightning_core.gateway.responses_request import to_chat
from lightning_core.gateway.responses_store import ResponseStore, Turn
from lightning_core.gateway.sampling import Kind, check_choices, prepare, prepare_plain
from lightning_core.gateway.stats import Stats
from lightning_core.gateway.targets import Target, Targets
from lightning_core.gateway.upstream import Upstreams
from lightning_core.spool.spool import SpoolWriter


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
    drift: DriftMemory
    stats: Stats
    max_body: int

    async def models(self, scope: Scope, receive: Receive, send: Send) -> int:
        self.access.identify(scope)
        data = [_model(name) for name in self.targets.names()]
        return await json_response({"object": "list", "data": data}).send(send)

    async def model(self, scope: Scope, receive: Receive, send: Send) -> int:
        caller = self.access.identify(scope)
        target = self.targets.resolve(scope["path_params"]["model"], caller)
        return await json_response(_model(target.asked)).send(send)

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> int:
        caller, request = await self._read(scope, receive, "messages")
        return await self._serve(caller, "chat", request, PlainFormat("chat"), scope, send)

    async def completion(self, scope: Scope, receive: Receive, send: Send) -> int:
        caller, request = await self._read(scope, receive, "prompt")
        return await self._serve(caller, "completion", request, PlainFormat("completions"), scope, send)

    async def embeddings(self, scope: Scope, receive: Receive, send: Send) -> int:
        caller, request = await self._read(scope, receive, "input")
        return await self._serve(caller, "embeddings", request, PlainFormat("embeddings"), scope, send)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> int:
        """`POST /v1/responses`: chat upstream, whichever policy or upstream serves it."""
        caller, request = await self._read(scope, receive, "input")
        try:
            chat, turn = self._as_chat(request, caller)
        except HttpError as error:
            await self.refused(caller, "chat", request, None, scope, error)
            raise
        api_format = ResponsesFormat(request, self.responses, turn)
        return await self._serve(caller, "chat", chat, api_format, scope, send)

    def _as_chat(self, request: dict[str, Any], caller: Caller) -> tuple[dict[str, Any], Turn]:
        previous = request.get("previous_response_id")
        history = [] if previous is None else self.responses.history(str(previous), caller)
        if history is None:
            raise HttpError(
                404,
                f"Previous response with id {previous!r} not found: it was not stored, is another attempt's, or so old "
                "that it was forgotten",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        chat, added = to_chat(request, history)
        return chat, Turn(new_response_id(), caller, previous, added, as_items(request["input"]))

    async def refused(
        self,
        caller: Caller,
        kind: Kind,
        request: dict[str, Any],
        policy: str | None,
        scope: Scope,
        error: HttpError,
    ) -> None:
        """Note a call that does not begin."""
        await note_refusal(self.spool, self.stats, caller, kind, request, policy, scope, error)

    async def _read(self, scope: Scope, receive: Receive, field: str) -> tuple[Caller, dict[str, Any]]:
        caller = self.access.identify(scope)
        return caller, _parse(await read_body(scope, receive, self.max_body), field)

    async def _target(self, caller: Caller, kind: Kind, request: dict[str, Any]) -> Target:
        """Where the call goes; HttpError where it may not go anywhere.

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
        except HttpError as error:
            policy = self.targets.policy_of(request["model"])
            await self.refused(caller, kind, request, policy, scope, error)
            raise
        prepared = (
            prepare_plain(request, kind, target.model)
            if target.route is None
            else prepare(request, kind, target.route, caller.mode, target.model)
        )
        call = Call(self, Asked(caller, target, request, prepared, api_format), scope, send)
        return await until_gone(scope, call.run())


def _parse(body: bytes, field: str) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
        orjson.dumps(
            [[request]]
        )  # it reads deeper than it writes, and what goes upstream, or into an event, is written
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"the body is no JSON: {error}") from None
    except orjson.JSONEncodeError:
        raise HttpError(400, "the body is nested too deeply") from None
    if not isinstance(request, dict):
        raise HttpError(400, "the body is no JSON object")
    if not isinstance(request.get("model"), str):
        raise HttpError(400, "you must provide a model parameter", param="model")
    if field not in request:
        raise HttpError(400, f"you must provide `{field}`", param=field)
    return cast(dict[str, Any], request)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "lightning-flows"}
