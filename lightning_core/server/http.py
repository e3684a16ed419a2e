"""The little HTTP that the handlers share: reading a bounded body, answering, OpenAI's error shape."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope

_SWALLOWED = 4  # times the limit
_STALLED_S = 60.0


class HttpError(Exception):
    """An answer other than the one hoped for, in OpenAI's error shape."""

    def __init__(
        self,
        status: int,
        message: str,
        type_: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.body = {"error": {"message": message, "type": type_, "param": param, "code": code}}
        self.headers = dict(headers or {})

    def response(self) -> Response:
        return json_response(self.body, self.status, self.headers)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, dict(headers or {}), media_type="application/json")


def unavailable(message: str, retry_after_s: int = 1) -> HttpError:
    return HttpError(503, message, "server_error", "service_unavailable", headers={"Retry-After": str(retry_after_s)})


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


Take = Callable[[int], None]


class Room:
    """How many bytes of request bodies may be in memory at one time. For one event loop."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes

    @contextlib.contextmanager
    def holding(self) -> Iterator[Take]:
        """Gives `take(size)`, which raises HttpError 503 where so much is not left; all is given back in the end."""
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if size > self._left:
                raise unavailable("too many large requests at one time; send it again")
            self._left -= size
            held += size

        try:
            yield take
        finally:
            self._left += held


async def read_body(
    scope: Scope, receive: Receive, max_bytes: int, take: Take | None = None, stalled_s: float = _STALLED_S
) -> bytes:
    """The whole body; HttpError 413 past `max_bytes`, 408 where no more of it comes, ClientGone when the client goes.

    `take` is told of each part.

    A body that is declared too large is refused before it is read: what the client sends of it all the same is thrown
    away by the HTTP server. The connection stays open for a moderate excess, as a client that is cut off while it sends
    sees a reset and not the answer; one that asked for `Connection: close` may see it all the same.
    """
    message = f"the body exceeds {max_bytes} bytes; send less, or raise server.max_body_mb"
    limit = _SWALLOWED * max_bytes
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        headers = {"Connection": "close"} if int(declared) > limit else None
        raise HttpError(413, message, code="request_too_large", headers=headers)
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(stalled_s):
                event = await receive()
        except TimeoutError:
            message = f"nothing of the body came for {stalled_s:.0f} s"
            raise HttpError(408, message, code="request_timeout", headers={"Connection": "close"}) from None
        if event["type"] == "http.disconnect":
            raise ClientGone
        part = event.get("body", b"")
        size += len(part)
        if size > limit or (size > max_bytes and not event.get("more_body")):
            raise HttpError(413, message, code="request_too_large", headers={"Connection": "close"})
        if size <= max_bytes:
            if take is not None:
                take(len(part))
            parts.append(part)
        if not event.get("more_body"):
            return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
