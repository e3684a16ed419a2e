"""The one way that spans leave this process: `post_spans`.

Only the standard library is used, so that an agent can import this beside any framework.
"""

from __future__ import annotations

import http.client
import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_core.client.http import ask
from lightning_core.otlp.spans import PROTOBUF, SpanData, encode_request
from lightning_core.otlp.wire import VARINT, WireError, varint, walk

log = logging.getLogger(__name__)

RETRYABLE = frozenset({429, 502, 503, 504})
_LONGEST_WAIT_S = 10.0


class DeliveryError(RuntimeError):
    """Spans that the gateway did not take. `permanent` says that sending the same again cannot help."""

    def __init__(self, message: str, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


def post_spans(
    endpoint: str,
    headers: Mapping[str, str],
    resource: Mapping[str, Any],
    spans: Sequence[SpanData],
    *,
    retries: int = 4,
    timeout_s: float = 10.0,
) -> None:
    """Send spans to `<endpoint>/v1/traces` and return once the gateway has acknowledged all of them.

    429, 502, 503, 504 and connection errors are tried again up to `retries` times, waiting as long as Retry-After says
    (10 s at most) or else a quarter of a second and then twice as long each time. Raises DeliveryError with the
    gateway's message.
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
    """One try: the failure, if any, and the seconds the gateway asked to wait before the next."""
    try:
        answer = ask("POST", url, {**headers, "Content-Type": PROTOBUF}, body, timeout_s)
    except ValueError as error:
        return DeliveryError(f"{url}: no usable endpoint or header: {error}", permanent=True), None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return DeliveryError(f"{url} cannot be reached: {reason}"), None
    fields = (
        _fields(answer.body) if answer.headers.get_content_type() == PROTOBUF else {}
    )  # others answer in their own way
    if answer.status == 200:
        return _rejected(url, fields.get(1)), None
    message = fields.get(2, answer.body[:2000])
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else ""
    failure = DeliveryError(f"{url} answered {answer.status}: {text}", permanent=answer.status not in RETRYABLE)
    return failure, _retry_after(answer.headers.get("Retry-After"))


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Field number → value (of several the last) of a message; nothing where it is none."""
    try:
        return {
            number: varint(message, begin, end)[0] if kind == VARINT else message[begin:end]
            for number, kind, begin, end in walk(message, 0, len(message))
        }
    except WireError:
        return {}


def _rejected(url: str, partial: int | bytes | None) -> DeliveryError | None:
    """A 200 can still say that spans were refused (OTLP's partial success)."""
    fields = _fields(partial) if isinstance(partial, bytes) else {}
    count, message = fields.get(1, 0), fields.get(2, b"")
    if not isinstance(count, int) or count <= 0 or not isinstance(message, bytes):
        return None
    return DeliveryError(f"{url} refused {count} spans: {message.decode('utf-8', 'replace')}", permanent=True)


def _retry_after(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None  # an HTTP date; our own backoff serves as well
