"""The OTLP/HTTP receiver, protobuf and JSON: 200 means that the spans are on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lightning_core.lake.otlp import JSON, PROTOBUF, OtlpError, media_type
from lightning_core.server.access import identify
from lightning_core.server.http import HttpError, read_body
from lightning_core.server.intake import GRPC_CODES, Intake, Signal

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receiver:
    secret: str
    intake: Intake

    async def traces(self, scope: Scope, receive: Receive, send: Send) -> int:
        headers = Headers(scope=scope)
        try:
            caller = identify(scope, self.secret, anonymous=True)
            with self.intake.admitted(caller) as take:
                body = await read_body(scope, receive, self.intake.max_body, take)
                answer = await self.intake.traces(caller, body, *_how(headers), take)
            response = _message(answer, headers)
        except (HttpError, OtlpError) as error:
            response = _error(error, headers)
        await response(scope, receive, send)
        return response.status_code

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._refuse("metrics", scope, receive, send)

    async def logs(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._refuse("logs", scope, receive, send)

    async def _refuse(self, signal: Signal, scope: Scope, receive: Receive, send: Send) -> int:
        headers = Headers(scope=scope)
        try:
            caller = identify(scope, self.secret, anonymous=True)
            with self.intake.admitted(caller) as take:
                body = await read_body(scope, receive, self.intake.max_body, take)
                response = _message(await self.intake.refuse(signal, body, *_how(headers)), headers)
        except (HttpError, OtlpError) as error:
            response = _error(error, headers)
        await response(scope, receive, send)
        return response.status_code


def _how(headers: Headers) -> tuple[str, str | None]:
    return headers.get("content-type", ""), headers.get("content-encoding")


def _message(message: Any, headers: Headers, status: int = 200, extra: dict[str, str] | None = None) -> Response:
    """A reply in the request's encoding, as OTLP/HTTP wants it."""
    if media_type(headers.get("content-type", "")) == JSON:
        return Response(json_format.MessageToJson(message, indent=None), status, extra, media_type=JSON)
    return Response(message.SerializeToString(), status, extra, media_type=PROTOBUF)


def _error(error: HttpError | OtlpError, headers: Headers) -> Response:
    if isinstance(error, HttpError) and error.status == 401:
        return error.response()  # one shape for a missing key, whatever was asked for
    log.warning("OTLP request refused with %d: %s", error.status, error.message)
    extra = error.headers if isinstance(error, HttpError) else None
    return _message(Status(code=GRPC_CODES.get(error.status, 2), message=error.message), headers, error.status, extra)
