"""The little HTTP that the handlers share: reading a bounded body, answering, OpenAI's error shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope

_SWALLOWED = 4  # times the limit


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


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body; HttpError 413 past `max_bytes`, ClientGone when it never comes."""
    too_large = HttpError(
        413,
        f"the body exceeds {max_bytes} bytes; send less, or raise server.max_body_mb",
        code="request_too_large",
        headers={"Connection": "close"},
    )
    # A client that is cut off while it sends sees a reset and not the answer: swallow a moderate excess unstored.
    limit = _SWALLOWED * max_bytes
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large
        if size <= max_bytes:
            parts.append(part)
        if not message.get("more_body"):
            if size > max_bytes:
                raise too_large
            return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
