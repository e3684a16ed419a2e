"""The OpenAI API in front of vLLM: every call leaves a durable span before its reply is complete.

One `Call` is one request. It ends in exactly one of: answered, refused by vLLM, failed (infrastructure), aborted
(the client went away); each leaves a span. Chunks of a stream pass at once, except that from the chunk that
finishes the last choice on everything waits for the span: a client that stops reading there has its span too.
Left out on purpose: /v1/responses, /v1/embeddings and everything administrative, which answer 404.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from lightning_core.lake.spool import Record, SpoolError, SpoolFull, SpoolWriter
from lightning_core.server.access import Caller, identify
from lightning_core.server.call_span import encode_call
from lightning_core.server.http import ClientGone, HttpError, disconnected, json_response, read_body, unavailable
from lightning_core.server.reply import Collected, take_chunk, take_reply
from lightning_core.server.routes import Route, RouteTable
from lightning_core.server.sampling import Kind, Prepared, prepare
from lightning_core.server.sse import DONE, SseParser, event
from lightning_core.server.stats import AttemptStats, Stats
from lightning_core.server.upstream import UpstreamDown, Upstreams

log = logging.getLogger(__name__)

_PATHS: dict[Kind, str] = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Gateway:
    """What all calls share."""

    secret: str
    spool: SpoolWriter
    routes: RouteTable
    upstreams: Upstreams
    stats: Stats
    max_body: int

    async def models(self, scope: Scope, receive: Receive, send: Send) -> int:
        identify(scope, self.secret)
        names = self.routes.current.policies
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "lightning-flows"} for name in names]
        await json_response({"object": "list", "data": data})(scope, receive, send)
        return 200

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._serve("chat", scope, receive, send)

    async def completion(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._serve("completion", scope, receive, send)

    async def _serve(self, kind: Kind, scope: Scope, receive: Receive, send: Send) -> int:
        caller = identify(scope, self.secret)
        request = _parse(await read_body(scope, receive, self.max_body), kind)
        name = request["model"]
        route = self.routes.current.policies.get(name)
        if route is None:
            known = ", ".join(self.routes.current.policies) or "none yet"
            raise HttpError(
                404,
                f"The model `{name}` does not exist; `model` names a policy, and these are served: {known}",
                code="model_not_found",
                param="model",
            )
        call = Call(self, caller, name, route, request, prepare(request, kind, route, caller.mode), scope, send)
        return await _until_disconnect(call.run(), receive)


def _parse(body: bytes, kind: Kind) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"the body is no JSON: {error}") from None
    if not isinstance(request, dict):
        raise HttpError(400, "the body is no JSON object")
    if not isinstance(request.get("model"), str):
        raise HttpError(400, "you must provide a model parameter", param="model")
    field = "messages" if kind == "chat" else "prompt"
    if field not in request:
        raise HttpError(400, f"you must provide `{field}`", param=field)
    return cast(dict[str, Any], request)


async def _until_disconnect(work: Coroutine[Any, Any, int], receive: Receive) -> int:
    """Run `work`; when the client goes away first, cancel it and raise ClientGone once it has cleaned up."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:  # also when the server stops: the span of what is cut off has to be stored first
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, HttpError):
        raise error
    raise ClientGone


class Call:
    """One LLM call from request to durable span."""

    def __init__(
        self,
        gateway: Gateway,
        caller: Caller,
        policy: str,
        route: Route,
        request: dict[str, Any],
        prepared: Prepared,
        scope: Scope,
        send: Send,
    ) -> None:
        self._gateway = gateway
        self._caller = caller
        self._policy = policy
        self._route = route
        self._request = request
        self._prepared = prepared
        self._scope = scope
        self._send = send
        self._collected = Collected()
        self._mark = gateway.routes.mark(policy)
        self._start_ns = time.time_ns()
        self._started = time.perf_counter()
        self._first_token_ms: float | None = None
        self._stored = False

    @property
    def _attempt(self) -> AttemptStats:
        return self._gateway.stats.attempt(self._caller.rollout_id, self._caller.attempt_id)

    async def run(self) -> int:
        """Serve the call; returns the status that was sent. Raises HttpError while nothing has been sent."""
        stats = self._gateway.stats
        self._attempt.calls += 1
        with stats.in_flight.labels(self._policy).track_inprogress(), stats.seconds.labels(self._policy).time():
            try:
                if self._gateway.spool.is_full():
                    # Refused before any token is sampled: without room for the span the reply could not be given.
                    raise self._broken("the spool is full; the ingestion has to free it, or raise server.spool_max_gb")
                return await self._forward()
            except asyncio.CancelledError:
                await asyncio.shield(self._leave("the client disconnected", "aborted"))
                raise

    async def _forward(self) -> int:
        try:
            response = await self._gateway.upstreams.post(
                self._route,
                _PATHS[self._prepared.kind],
                self._prepared.body,
                on_retry=self._gateway.stats.retries.labels(self._policy).inc,
            )
        except UpstreamDown as error:
            await self._leave(str(error), "unreachable")
            raise self._broken(str(error)) from None
        async with response:
            if response.status >= 400:
                raise await self._refused(response.status, await response.read())
            if self._prepared.stream and response.content_type == "text/event-stream":
                return await self._stream(response)
            return await self._whole(response)

    async def _whole(self, response: aiohttp.ClientResponse) -> int:
        try:
            reply = orjson.loads(await response.read())
            take_reply(reply, self._prepared, self._policy, self._collected)
        except (aiohttp.ClientError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"the model server's reply broke off or is no JSON of vLLM's shape: {error!r}"
            await self._leave(message, "broken")
            raise self._broken(message) from None
        await self._store(None, "ok")
        await json_response(reply)(self._scope, _no_receive, self._send)
        return 200

    async def _stream(self, response: aiohttp.ClientResponse) -> int:
        """Pass chunks on as they come; hold back those from the last choice's end until the span is durable."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        parser, held, problem = SseParser(), bytearray(), None
        ended = False
        try:
            async for data in response.content.iter_any():
                ready = bytearray()
                for raw in parser.feed(data):
                    if raw == DONE:
                        ended = True
                        continue
                    chunk = take_chunk(orjson.loads(raw), self._prepared, self._policy, self._collected)
                    finished = self._collected.finished() >= self._prepared.choices
                    if chunk is not None:
                        (held if finished else ready).extend(event(orjson.dumps(chunk)))
                if self._first_token_ms is None and any(c.token_ids for c in self._collected.choices.values()):
                    self._first_token_ms = (time.perf_counter() - self._started) * 1000
                if ready:
                    await self._send({"type": "http.response.body", "body": bytes(ready), "more_body": True})
            if not ended:
                problem = "the model server's stream ended without [DONE]"
        except (aiohttp.ClientError, ValueError, TypeError, KeyError, AttributeError) as error:
            problem = f"the model server's stream broke: {error!r}"
        if problem is None and self._collected.error is None:
            try:
                await self._store(None, "ok")
            except HttpError as error:
                return await self._end_broken(error)
        else:
            await self._leave(problem or self._collected.error or "", "broken")
            failure = self._broken(problem or self._collected.error or "")
            if problem is not None:
                return await self._end_broken(failure)
        await self._send({"type": "http.response.body", "body": bytes(held) + event(DONE)})
        return 200

    async def _end_broken(self, error: HttpError) -> int:
        """Too late for a status: an error event, and no [DONE], which OpenAI's clients raise as an APIError."""
        await self._send({"type": "http.response.body", "body": event(orjson.dumps(error.body))})
        return 200

    async def _refused(self, status: int, body: bytes) -> HttpError:
        """vLLM's own error, in OpenAI's shape. What the agent cannot have caused becomes 503."""
        try:
            raw = orjson.loads(body)
            error = raw["error"] if isinstance(raw.get("error"), dict) else raw
            message = str(error.get("message") or error)
        except (ValueError, AttributeError, KeyError):
            error, message = {}, body[:500].decode(errors="replace") or "no message"
        await self._leave(f"vLLM answered {status}: {message}", "refused" if status < 500 else "unreachable")
        if status in (401, 403, 404) or status >= 500:
            return self._broken(f"policy {self._policy!r}: vLLM answered {status}: {message}")
        code = error.get("code")
        return HttpError(
            status,
            message,
            str(error.get("type") or "invalid_request_error"),
            code=None if code is None or isinstance(code, int) else str(code),
            param=error.get("param"),
        )

    def _broken(self, message: str) -> HttpError:
        """Count a failure of the infrastructure for the attempt; returns what the client is told."""
        self._attempt.infrastructure_errors += 1
        self._attempt.last_error = message
        log.warning("call to %s for rollout %s failed: %s", self._policy, self._caller.rollout_id, message)
        return unavailable(message)

    async def _store(self, failure: str | None, outcome: str) -> None:
        """Make the span durable; HttpError 503 where that cannot be."""
        if self._stored:
            return
        self._stored = True
        stats = self._gateway.stats
        body = encode_call(
            caller=self._caller,
            policy=self._policy,
            versions=self._gateway.routes.versions_since(self._policy, self._mark),
            request=self._request,
            prepared=self._prepared,
            collected=self._collected,
            traceparent=Headers(scope=self._scope).get("traceparent"),
            start_ns=self._start_ns,
            end_ns=max(time.time_ns(), self._start_ns),
            first_token_ms=self._first_token_ms,
            failure=failure,
            aborted=outcome in ("aborted", "broken"),
        )
        caller = self._caller
        record = Record(caller.rollout_id, caller.attempt_id, caller.scope, time.time_ns(), "gateway", body)
        try:
            await self._gateway.spool.append(record)
        except (SpoolFull, SpoolError) as error:
            stats.refused.inc()
            stats.calls.labels(self._policy, "not_stored").inc()
            raise self._broken(f"the call's span could not be stored: {error}") from None
        stats.spooled.labels("gateway").inc(len(body))
        stats.calls.labels(self._policy, outcome).inc()
        for kind in ("prompt", "completion"):
            stats.tokens.labels(self._policy, kind).inc(self._collected.usage.get(f"{kind}_tokens") or 0)

    async def _leave(self, failure: str, outcome: str) -> None:
        """The span of a call that failed; that it cannot be stored is logged and counted, the failure stays."""
        with contextlib.suppress(HttpError):
            await self._store(failure, outcome)


async def _no_receive() -> Any:
    raise RuntimeError("the request was read already")
