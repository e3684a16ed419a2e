"""Spans, and the one way they leave this process: `post_spans`.

Only the standard library is used, so that an agent can import this beside any framework.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning_core.client import span_bytes
from lightning_core.client.http import Answer, ask

log = logging.getLogger(__name__)

RETRYABLE = frozenset({429, 502, 503, 504})
STATUS_UNSET, STATUS_OK, STATUS_ERROR = "unset", "ok", "error"
SCOPE = "lightning-flows"
PROTOBUF = "application/x-protobuf"
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
    status: str = STATUS_UNSET
    status_message: str = ""
    events: Sequence[tuple[int, str, Mapping[str, Any]]] = ()

    def encodable(self) -> _Encodable:
        return _Encodable(
            self.name,
            bytes.fromhex(self.trace_id),
            bytes.fromhex(self.span_id),
            bytes.fromhex(self.parent_id),
            self.start_ns,
            self.end_ns,
            plain_attributes(self.attributes),
            self.status,
            self.status_message,
            [(at, name, plain_attributes(attributes)) for at, name, attributes in self.events],
        )


class _Encodable(NamedTuple):
    """A span as `span_bytes` writes it."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    status: str
    status_message: str
    events: Sequence[tuple[int, str, Mapping[str, Any]]]
    kind: int = 1  # internal


def new_trace_id() -> str:
    """32 hex digits from the operating system: an agent that seeds `random` still gets ids of its own."""
    return os.urandom(16).hex()


def new_span_id() -> str:
    """16 hex digits from the operating system."""
    return os.urandom(8).hex()


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as OTLP knows them. `None` is left out, a mapping becomes JSON text, anything unknown its `str`."""
    return {str(key): _plain(value) for key, value in attributes.items() if value is not None}


def encode_request(resource: Mapping[str, Any], spans: Iterable[SpanData]) -> bytes:
    """The body of one export request."""
    return span_bytes.encode_request(plain_attributes(resource), [span.encodable() for span in spans], SCOPE)


def post_spans(
    endpoint: str,
    headers: Mapping[str, str],
    resource: Mapping[str, Any],
    spans: Sequence[SpanData],
    *,
    retries: int = 4,
    timeout_s: float = 10.0,
) -> None:
    """Send spans to `<endpoint>/v1/traces` and return once the server has acknowledged all of them.

    429, 502, 503, 504 and connection errors are tried again up to `retries` times, waiting as long as Retry-After says
    (10 s at most) or else a quarter of a second and then twice as long each time. Raises DeliveryError with what the
    server said.
    """
    post_request(endpoint, headers, encode_request(resource, spans), retries=retries, timeout_s=timeout_s)


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
        answer = ask("POST", url, {**headers, "Content-Type": PROTOBUF}, body, timeout_s)
    except ValueError as error:
        return DeliveryError(f"{url}: no usable endpoint or header: {error}", permanent=True), None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return DeliveryError(f"{url} cannot be reached: {reason}"), None
    said = _fields(answer)
    if answer.status == 200:
        partial = said.get(1)
        return (_rejected(url, partial) if isinstance(partial, bytes) else None), None
    message = said.get(2, answer.body[:2000])
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else ""
    failure = DeliveryError(f"{url} answered {answer.status}: {text}", permanent=answer.status not in RETRYABLE)
    return failure, _retry_after(answer.headers.get("Retry-After"))


def _fields(answer: Answer) -> dict[int, int | bytes]:
    """Of the message that OTLP has for an answer; none where another party answers in its own way."""
    if answer.headers.get_content_type() != PROTOBUF:
        return {}
    try:
        return span_bytes.fields(answer.body)
    except ValueError:
        return {}


def _rejected(url: str, partial: bytes) -> DeliveryError | None:
    """A 200 can still say that spans were refused (OTLP's partial success)."""
    try:
        said = span_bytes.fields(partial)
    except ValueError:
        return None
    count, message = said.get(1, 0), said.get(2, b"")
    if not isinstance(count, int) or count <= 0 or not isinstance(message, bytes):
        return None
    return DeliveryError(f"{url} refused {count} spans: {message.decode('utf-8', 'replace')}", permanent=True)


def _retry_after(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None  # an HTTP date; our own backoff serves as well


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -_INT64 <= value < _INT64 else str(int(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        try:
            return json.dumps(dict(value), ensure_ascii=False, default=str)
        except (TypeError, ValueError):  # keys that JSON does not know, a mapping that holds itself
            return str(value)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value if item is not None]
    return str(value)
