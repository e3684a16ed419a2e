"""One LLM call from request to durable span.

It ends in exactly one of: answered, refused by the upstream, failed (infrastructure), aborted (the client went away);
each leaves a span. Chunks of a stream pass at once, except that a choice's last chunk, and all after the last choice's,
wait for the span: a client that stops reading there has its span too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import orjson

from lightning_core.gateway.call_log import log_call
from lightning_core.gateway.call_span import Asked, Outcome, encode_call
from lightning_core.gateway.http import HttpError, Scope, Send, declared_size, header, json_response, unavailable
from lightning_core.gateway.http_client import Reply
from lightning_core.gateway.reply import Collected, error_in, finishes, stamp, take_chunk, take_reply
from lightning_core.gateway.sampling import Kind
from lightning_core.gateway.sse import DONE, SseParser
from lightning_core.gateway.upstream import UpstreamDown, without_key
from lightning_core.spool.spool import Record, SpoolError

if TYPE_CHECKING:
    from lightning_core.gateway.gateway import Gateway

log = logging.getLogger(__name__)

_WHEN_AGAIN = ("retry-after", "retry-after-ms", "x-should-retry")  # what OpenAI's clients go by
_BESIDE_REQUEST = 16_384  # bytes that a span is taken to have, beside the request's messages
_PATHS: dict[Kind, str] = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
_BROKEN = (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError)


class Call:
    """One call. `run` is called once."""

    def __init__(self, gateway: Gateway, asked: Asked, scope: Scope, send: Send) -> None:
        self._gateway = gateway
        self._asked = asked
        self._scope = scope
        self._send = send
        self._collected = Collected()
        self._start_ns = time.time_ns()
        self._started = time.perf_counter()
        self._first_token_ms: float | None = None
        self._upstream_request_id: str | None = None
        self._stored = False
        self._waits = False  # for a model server that failed, and is tried again
        self._counters = gateway.stats.policy(asked.target.label)
        self._attempt = gateway.stats.attempt(asked.caller.rollout_id, asked.caller.attempt_id)

    async def run(self) -> int:
        """Serve the call, and return the status that was sent. Raises HttpError while nothing has been sent."""
        counters = self._counters
        if self._gateway.spool.is_full(declared_size(self._scope) + _BESIDE_REQUEST):
            # Refused before any token is sampled: without room for the span the reply could not be given.
            self._gateway.stats.turned_away.labels(self._asked.target.label, "spool").inc()
            raise self._broken("the spool is full; the ingestion has to free it, or raise gateway.spool_max_gb")
        self._attempt.calls += 1
        counters.in_flight.inc()
        serving, model = self._gateway.stats.serving, self._asked.target.model
        serving[model] = serving.get(model, 0) + 1
        try:
            async with self._gateway.admission.place(self._asked.caller):
                return await self._forward()
        except asyncio.CancelledError:
            if self._waits:
                self._attempt.failed(
                    "the client left while the model server was waited for", question(self._asked.request)
                )
            gone = self._scope["lightning.connection"].is_gone()
            await asyncio.shield(self._leave("the client disconnected" if gone else "the gateway stopped", "aborted"))
            raise
        except HttpError:
            raise
        except Exception as error:
            await self._leave(f"a fault of the gateway: {error!r}", "broken")
            raise
        finally:
            counters.in_flight.dec()
            serving[model] -= 1
            counters.seconds.observe(time.perf_counter() - self._started)

    async def _forward(self) -> int:
        target, prepared = self._asked.target, self._asked.prepared
        rollout = self._asked.caller.rollout_id

        def on_retry() -> None:
            self._counters.retries.inc()
            self._waits = True

        try:
            async with self._gateway.upstreams.post(
                target, _PATHS[prepared.kind], prepared.body, rollout, on_retry
            ) as reply:
                self._waits = False
                self._upstream_request_id = reply.headers.get("x-request-id")
                if reply.status >= 300:
                    raise await self._refused(reply)
                return await (self._stream(reply) if prepared.stream and reply.streams else self._whole(reply))
        except UpstreamDown as error:
            await self._leave(str(error), "unreachable")
            raise self._broken(str(error)) from None

    async def _whole(self, answer: Reply) -> int:
        prepared, api_format = self._asked.prepared, self._asked.api_format
        try:
            reply = orjson.loads(await answer.read())
            if (error := error_in(reply)) is not None:
                raise ValueError(without_key(f"an error came as a success: {error}", self._asked.target))
            taken = take_reply(reply, prepared, self._asked.target.asked, self._collected)
            response = json_response(api_format.reply(taken, self._collected))
        except _BROKEN as error:
            message = f"the model server's reply broke off or is no JSON of vLLM's shape: {error!r}"
            await self._leave(message, "broken")
            raise self._broken(message) from None
        await self._store(None, "ok")
        self._keep()
        return await response.send(self._send)

    async def _stream(self, answer: Reply) -> int:
        """Pass chunks on as they come; hold back those from the last choice's end until the span is durable."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        api_format, parser = self._asked.api_format, SseParser()
        held: list[dict[str, Any]] = []
        ready, ended, problem, last = bytearray(api_format.begin()), False, None, b""
        try:
            while not ended and (data := await answer.some()):  # what comes after [DONE] is not waited for
                for raw in parser.feed(data):
                    if raw == DONE:
                        ended = True
                    elif self._take(raw, ready, held):
                        raise ValueError(self._collected.error)
                if self._first_token_ms is None and self._collected.begun():
                    self._first_token_ms = (time.perf_counter() - self._started) * 1000
                    self._counters.first_token.observe(self._first_token_ms / 1000)
                if ready:
                    await self._send({"type": "http.response.body", "body": bytes(ready), "more_body": True})
                    ready.clear()
            if not ended:
                problem = "the model server's stream ended without [DONE]"
            if problem is None:
                chunks = (stamp(chunk, self._asked.prepared, self._collected) for chunk in held)
                last = b"".join(map(api_format.chunk, chunks)) + api_format.end(self._collected)
        except _BROKEN as error:
            problem = f"the model server's stream broke: {error!r}"
            if self._collected.error is not None:
                problem = without_key(self._collected.error, self._asked.target)
        failure = None
        if problem is None:
            try:
                await self._store(None, "ok")
                self._keep()
            except HttpError as error:
                failure = error
        else:
            await self._leave(problem, "broken")
            failure = self._broken(problem)
        if failure is not None:
            last = api_format.broken(failure)
        await self._send({"type": "http.response.body", "body": last})
        return 200

    def _keep(self) -> None:
        try:
            self._asked.api_format.kept(self._collected)
        except HttpError as error:
            raise self._broken(error.message) from None

    def _take(self, raw: bytes, ready: bytearray, held: list[dict[str, Any]]) -> bool:
        """Collect one chunk, and put it where it belongs; True where it is an error."""
        prepared = self._asked.prepared
        chunk = take_chunk(orjson.loads(raw), prepared, self._asked.target.asked, self._collected)
        if self._collected.error is not None:
            return True
        if chunk is not None:
            after = self._collected.finished() >= prepared.choices or (held and not chunk.get("choices"))
            if after or finishes(chunk):
                held.append(chunk)
            else:
                ready += self._asked.api_format.chunk(chunk)
        return False

    async def _refused(self, reply: Reply) -> HttpError:
        """Return the upstream's own error, in OpenAI's shape. What the agent cannot have caused becomes 503."""
        target, status, body = self._asked.target, reply.status, b""
        with contextlib.suppress(OSError):
            body = await reply.read()
        try:
            raw = orjson.loads(body)
            error = raw["error"] if isinstance(raw.get("error"), dict) else raw
            message = str(error.get("message") or error)
        except (ValueError, AttributeError, KeyError):
            error, message = {}, body[:500].decode(errors="replace") or "no message"
        message = without_key(message, target)
        who = "vLLM" if target.policy else f"upstream {target.label!r}"
        ours = status in (401, 403, 404) or status >= 500 or status < 400
        await self._leave(f"{who} answered {status}: {message}", "unreachable" if ours else "refused")
        if ours:
            return self._broken(f"{target.asked!r}: {who} answered {status}: {message}")
        code, param = error.get("code"), error.get("param")
        return HttpError(
            status,
            message,
            str(error.get("type") or "invalid_request_error"),
            code=None if code is None or isinstance(code, int) else str(code),
            param=None if param is None else str(param),
            headers={name: reply.headers[name] for name in _WHEN_AGAIN if name in reply.headers},
        )

    def _broken(self, message: str) -> HttpError:
        """Count a failure of the infrastructure for the attempt, and return what the client gets."""
        caller = self._asked.caller
        self._attempt.failed(message, question(self._asked.request))
        log.warning("call to %s for rollout %s failed: %s", self._asked.target.label, caller.rollout_id, message[:300])
        return unavailable(message)

    async def _store(self, failure: str | None, outcome: str) -> None:
        """Make the span durable; HttpError 503 where that cannot be."""
        if self._stored:
            return
        self._stored = True
        gateway, asked, collected = self._gateway, self._asked, self._collected
        stats, counters, caller = gateway.stats, self._counters, asked.caller
        result = Outcome(
            versions=gateway.targets.versions(asked.target),
            start_ns=self._start_ns,
            end_ns=max(time.time_ns(), self._start_ns),
            upstream_request_id=self._upstream_request_id,
            first_token_ms=self._first_token_ms,
            failure=failure,
            aborted=outcome in ("aborted", "broken"),
        )
        body = encode_call(asked, collected, header(self._scope, b"traceparent"), result)
        record = Record(caller.rollout_id, caller.attempt_id, caller.scope, time.time_ns(), "gateway", body)
        try:
            await gateway.spool.append(record)
        except SpoolError as error:
            stats.refused.inc()
            counters.ended("not_stored").inc()
            raise self._broken(f"the call's span could not be stored: {error}") from None
        except asyncio.CancelledError:
            self._count(result, outcome, len(body))  # it is written all the same
            raise
        self._count(result, outcome, len(body))

    def _count(self, result: Outcome, outcome: str, size: int) -> None:
        gateway, collected, counters = self._gateway, self._collected, self._counters
        gateway.stats.spooled_calls.inc(size)
        counters.ended(outcome).inc()
        for kind, counter in counters.tokens.items():
            used = collected.tokens(kind)
            counter.inc(used)
            self._attempt.tokens += used
        if self._attempt.unanswered and outcome in ("ok", "refused"):
            self._attempt.answered(question(self._asked.request), self._started)
        log_call(gateway.settings.log_calls, self._asked, collected, result, outcome)

    async def _leave(self, failure: str, outcome: str) -> None:
        """Store the span of a failed call. That it cannot be stored is logged and counted, and the failure stays."""
        with contextlib.suppress(HttpError):
            await self._store(failure, outcome)


def question(request: dict[str, Any]) -> int:
    """Return a hash of what is asked, so that it is known again when the client asks it once more."""
    return hash(orjson.dumps([request.get(key) for key in ("model", "messages", "prompt", "input")]))
