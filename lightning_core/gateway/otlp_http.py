"""The OTLP/HTTP receiver, protobuf and JSON: 200 means that the spans are on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.rpc.status_pb2 import Status

from lightning_core.gateway.access import Access
from lightning_core.gateway.http import Handle, HttpError, Receive, Response, Scope, Send, header, read_body
from lightning_core.gateway.intake import GRPC_CODES, Intake, Signal
from lightning_core.otlp.messages import OtlpError
from lightning_core.otlp.receive import JSON, media_type
from lightning_core.otlp.spans import PROTOBUF

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receiver:
    access: Access
    intake: Intake

    def endpoint(self, signal: Signal) -> Handle:
        """Return the handler of a signal's requests."""

        async def handle(scope: Scope, receive: Receive, send: Send) -> int:
            media, encoding = header(scope, b"content-type") or "", header(scope, b"content-encoding")
            try:
                caller = self.access.identify_spans(scope)
                with self.intake.admitted(caller) as take:
                    body = await read_body(scope, receive, self.intake.max_body, take)
                    answer = await self.intake.answer(signal, caller, body, media, encoding, take)
                response = _message(answer, media)
            except (HttpError, OtlpError) as error:
                response = _error(error, media)
            return await response.send(send)

        return handle


def _message(message: Any, media: str, status: int = 200, extra: dict[str, str] | None = None) -> Response:
    """Return a reply in the request's encoding, as OTLP/HTTP wants it."""
    if media_type(media) == JSON:
        return Response(json_format.MessageToJson(message, indent=None).encode(), status, JSON, extra or {})
    return Response(message.SerializeToString(), status, PROTOBUF, extra or {})


def _error(error: HttpError | OtlpError, media: str) -> Response:
    if isinstance(error, HttpError) and error.status == 401:
        return error.response()  # one shape for a missing key, whatever was asked for
    log.warning("OTLP request refused with %d: %s", error.status, error.message)
    extra = error.headers if isinstance(error, HttpError) else None
    return _message(Status(code=GRPC_CODES.get(error.status, 2), message=error.message), media, error.status, extra)
