"""Spans as OTLP/JSON, and the one way they leave this process: `post_spans`.

OTLP/JSON differs from plain protobuf JSON in two places that matter here: trace and span ids are hex, and 64-bit
integers are strings. Only the standard library is used, so that an agent can import this beside any framework.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import math
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

RETRYABLE = frozenset({429, 502, 503, 504})
STATUS_UNSET, STATUS_OK, STATUS_ERROR = 0, 1, 2
SCOPE = "lightning-flows"
_INT64 = 1 << 63
_LONGEST_WAIT_S = 10.0


class DeliveryError(RuntimeError):
    """Spans that the server did not take. `permanent` says that sending the same again cannot help."""

    def __init__(self, message: str, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(slots=True)
class SpanData:
    """One span. Ids are lower-case hex (32 and 16 digits), times are ns since the epoch."""

    name: str
    start_ns: int
    end_ns: int
    trace_id: str
    span_id: str
    parent_id: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    status: int = STATUS_UNSET
    status_message: str = ""
    events: Sequence[tuple[int, str, Mapping[str, Any]]] = ()

    def to_json(self) -> dict[str, Any]:
        """The span as OTLP/JSON."""
        span: dict[str, Any] = {
            "traceId": self.trace_id,
            "spanId": self.span_id,
            "name": _text(self.name),
            "kind": 1,
            "startTimeUnixNano": str(self.start_ns),
            "endTimeUnixNano": str(self.end_ns),
            "attributes": encode_attributes(self.attributes),
            "status": {"code": self.status} | ({"message": _text(self.status_message)} if self.status_message else {}),
        }
        if self.parent_id:
            span["parentSpanId"] = self.parent_id
        if self.events:
            span["events"] = [
                {"timeUnixNano": str(at), "name": _text(name), "attributes": encode_attributes(attributes)}
                for at, name, attributes in self.events
            ]
        return span


def new_trace_id() -> str:
    """32 hex digits from the operating system: an agent that seeds `random` still gets ids of its own."""
    return os.urandom(16).hex()


def new_span_id() -> str:
    """16 hex digits from the operating system."""
    return os.urandom(8).hex()


def encode_attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Attributes as OTLP/JSON key-values. `None` is left out, a mapping becomes JSON text, anything unknown its `str`."""
    return [
        {"key": _text(str(key)), "value": _encode_value(value)}
        for key, value in attributes.items()
        if value is not None
    ]


def encode_request(resource: Mapping[str, Any], spans: Iterable[Mapping[str, Any]]) -> bytes:
    """The body of one export request; `spans` are OTLP/JSON spans (`SpanData.to_json`)."""
    scope_spans = [{"scope": {"name": SCOPE}, "spans": list(spans)}]
    request = {"resourceSpans": [{"resource": {"attributes": encode_attributes(resource)}, "scopeSpans": scope_spans}]}
    return json.dumps(request, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def post_spans(
    endpoint: str,
    headers: Mapping[str, str],
    resource: Mapping[str, Any],
    spans: Sequence[SpanData | Mapping[str, Any]],
    *,
    retries: int = 4,
    timeout_s: float = 10.0,
) -> None:
    """Send spans to `<endpoint>/v1/traces` and return once the server has acknowledged all of them.

    429, 502, 503, 504 and connection errors are tried again up to `retries` times, waiting as long as Retry-After says
    (10 s at most) or else a quarter of a second and then twice as long each time. Raises DeliveryError with what the
    server said.
    """
    body = encode_request(resource, [span.to_json() if isinstance(span, SpanData) else span for span in spans])
    post_request(endpoint, headers, body, retries=retries, timeout_s=timeout_s)


def post_request(
    endpoint: str, headers: Mapping[str, str], body: bytes, *, retries: int = 4, timeout_s: float = 10.0
) -> None:
    """Send one encoded export request; see `post_spans`."""
    url = endpoint.rstrip("/") + "/v1/traces"
    for attempt in range(retries + 1):
        failure, wait_s = _post_once(url, headers, body, timeout_s)
        if failure is None:
            return
        if failure.permanent or attempt == retries:
            raise failure
        backoff = 0.25 * 2**attempt * (0.75 + random.SystemRandom().random() / 2)
        wait_s = min(_LONGEST_WAIT_S, backoff if wait_s is None else wait_s)
        log.debug("%s; trying again in %.2f s", failure, wait_s)
        time.sleep(wait_s)


def _post_once(
    url: str, headers: Mapping[str, str], body: bytes, timeout_s: float
) -> tuple[DeliveryError | None, float | None]:
    """One try: the failure, if any, and the seconds the server asked to wait before the next."""
    try:
        request = urllib.request.Request(url, data=body, method="POST", headers=dict(headers))
        request.add_header("Content-Type", "application/json")
        with _opener(url).open(request, timeout=timeout_s) as reply:
            return _rejected(url, reply.read()), None
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(2000).decode("utf-8", "replace")
        failure = DeliveryError(f"{url} answered {error.code}: {said}", permanent=error.code not in RETRYABLE)
        return failure, _retry_after(error.headers.get("Retry-After"))
    except ValueError as error:
        return DeliveryError(f"{url}: no usable endpoint or header: {error}", permanent=True), None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return DeliveryError(f"{url} cannot be reached: {reason}"), None


def _rejected(url: str, reply: bytes) -> DeliveryError | None:
    """A 200 can still say that spans were refused (OTLP's partial success)."""
    try:
        partial = json.loads(reply or b"{}").get("partialSuccess") or {}
        count = int(partial.get("rejectedSpans") or 0)
    except (ValueError, AttributeError):
        return None  # an acknowledgement in another format
    if count <= 0:
        return None
    return DeliveryError(f"{url} refused {count} spans: {partial.get('errorMessage', '')}", permanent=True)


def _retry_after(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None  # an HTTP date; our own backoff serves as well


class _Connection(http.client.HTTPConnection):
    """Hears an answer that comes before the request is sent: 413, say, after which the server reads no more."""

    def send(self, data: Any) -> None:
        try:
            super().send(data)
        except (BrokenPipeError, ConnectionResetError):
            if self.sock is None:
                raise
            # `getresponse` says whether there is an answer.


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


def _opener(url: str) -> urllib.request.OpenerDirector:
    """A proxy set for the machine must not see what goes to this machine itself."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if host == "localhost" or host == "::1" or host.startswith("127."):
        return _DIRECT
    return urllib.request.build_opener(_Http)


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Http)


def _encode_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        value = int(value)
        return {"intValue": str(value)} if -_INT64 <= value < _INT64 else {"stringValue": str(value)}
    if isinstance(value, float):
        value = float(value)
        if math.isfinite(value):
            return {"doubleValue": value}
        return {"doubleValue": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, str):
        return {"stringValue": _text(value)}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        try:
            return {"stringValue": _text(json.dumps(dict(value), ensure_ascii=False, default=str))}
        except (TypeError, ValueError):  # keys that JSON does not know, a mapping that holds itself
            return {"stringValue": _text(str(value))}
    if isinstance(value, Sequence):
        return {"arrayValue": {"values": [_encode_value(item) for item in value if item is not None]}}
    return {"stringValue": _text(str(value))}


def _text(value: str) -> str:
    """Text that is valid UTF-8: a lone surrogate would make the server refuse the whole request."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace").decode()
    return value
