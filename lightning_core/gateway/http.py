"""The little HTTP that the handlers share: reading a bounded body, answering, OpenAI's error shape."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

Scope = dict[str, Any]  # ASGI's
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handle = Callable[[Scope, Receive, Send], Awaitable[int]]  # returns the status

JSON = "application/json"
UNAVAILABLE = "service_unavailable"  # the code of what is not the client's doing

Take = Callable[[int], None]  # of room for so many bytes

_SWALLOWED = 4  # times the limit
BODY_S = 120.0  # for all of a body, however it is cut
_NUMBER = re.compile("[0-9]{1,18}")  # which any client may write without end: Python reads no more than 4,300 digits


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of this name, which is given in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    body: bytes
    status: int = 200
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, send: Send) -> int:
        """Send the response, and return its status."""
        head = [
            (b"content-length", b"%d" % len(self.body)),
            (b"content-type", self.media_type.encode("latin-1")),
            *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body})
        return self.status


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
        self.code = code
        self.body = {"error": {"message": message, "type": type_, "param": param, "code": code}}
        self.headers = dict(headers or {})

    def response(self) -> Response:
        return json_response(self.body, self.status, self.headers)


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers=headers or {})


def invalid(param: str, message: str) -> HttpError:
    """Return the error for a field that has what it may not have; the message names it."""
    return HttpError(400, message, code="invalid_value", param=param)


def unavailable(message: str, code: str = UNAVAILABLE) -> HttpError:
    return HttpError(503, message, "server_error", code, headers={"Retry-After": "1"})


def whole_number(text: str, param: str, least: int, most: int) -> int:
    """Return the number that a query parameter is; HttpError 400 where it is none of `least` to `most`."""
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise invalid(param, f"`{param}` has to be {least} to {most}")
    return int(text)


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(
    scope: Scope, receive: Receive, max_bytes: int, take: Take | None = None, within_s: float = BODY_S
) -> bytes:
    """Return the whole body.

    Raises HttpError 413 past `max_bytes`, 408 where it takes too long to come, ClientGone when the client goes.
    `take` gets the size of each part, and first the declared size of the whole.

    A body that is declared too large is refused before it is read: what the client sends of it all the same is thrown
    away by the HTTP server. The connection stays open for a moderate excess, as a client that is cut off while it sends
    sees a reset and not the answer; one that asked for `Connection: close` may see it all the same.
    """
    if (size := declared_size(scope)) > max_bytes:
        raise _too_large(max_bytes, ends=size > _SWALLOWED * max_bytes)
    if take is not None:
        take(size)  # nothing is read where there is no room for all, and none is kept for what may never come
        take(-size)
    connection = scope.get("lightning.connection")
    if connection is not None and connection.has_whole_body():
        return await _whole_body(receive, max_bytes, take)  # a timer would cost more than all else here
    try:
        async with asyncio.timeout(within_s):
            return await _whole_body(receive, max_bytes, take)
    except TimeoutError:
        message = f"the body did not come within {within_s:.0f} s"
        raise HttpError(408, message, code="request_timeout", headers={"Connection": "close"}) from None


async def _whole_body(receive: Receive, max_bytes: int, take: Take | None) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGone
        part = event.get("body", b"")
        size += len(part)
        if size > _SWALLOWED * max_bytes or (size > max_bytes and not event.get("more_body")):
            raise _too_large(max_bytes, ends=True)
        if size <= max_bytes:
            if take is not None:
                take(len(part))
            parts.append(part)
        if not event.get("more_body"):
            return b"".join(parts)


def declared_size(scope: Scope) -> int:
    """Return the bytes that the body is declared to have; 0 where nothing is declared."""
    declared = header(scope, b"content-length") or ""
    return int(declared) if _NUMBER.fullmatch(declared) else 0


def _too_large(max_bytes: int, ends: bool) -> HttpError:
    message = f"the body exceeds {max_bytes} bytes; send less, or raise gateway.max_body_mb"
    return HttpError(413, message, code="request_too_large", headers={"Connection": "close"} if ends else None)


async def until_gone(scope: Scope, work: Coroutine[Any, Any, int]) -> int:
    """Run `work`; when the client goes away first, cancel it and raise ClientGone once it has cleaned up."""
    connection, task, gone = scope["lightning.connection"], asyncio.current_task(), False
    assert task is not None

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    connection.watch(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise  # the gateway stops
        task.uncancel()
        raise ClientGone from None
    finally:
        connection.watch(None)
