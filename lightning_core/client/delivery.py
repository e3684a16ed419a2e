"""The one way that spans, and the opening and end of a rollout, leave this process: `post_spans`, `post_json`.

Only the standard library is used, so that an agent can import this beside any framework.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_core.client.http import Answer, ask
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
    answer = _post(url, {**headers, "Content-Type": PROTOBUF}, body, retries, timeout_s)
    _raise_rejected(url, answer)


def post_json(url: str, token: str, value: Any, *, retries: int = 4, timeout_s: float = 10.0) -> Any:
    """Send a value as JSON with a bearer token, and return the answer; tries again and raises as `post_spans` does.

    Raises ValueError where it cannot be written as JSON.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = _post(url, headers, json.dumps(value, allow_nan=False).encode(), retries, timeout_s)
    try:
        return json.loads(answer.body)
    except ValueError:
        raise DeliveryError(f"{url} answered no JSON: {answer.body[:200]!r}", permanent=True) from None


def _post(url: str, headers: Mapping[str, str], body: bytes, retries: int, timeout_s: float) -> Answer:
    """Return the answer with status 200; raise DeliveryError where there is none after `retries` more tries."""
    for attempt in range(retries + 1):
        answer, wait_s = _post_once(url, headers, body, timeout_s)
        if isinstance(answer, Answer):
            return answer
        if answer.permanent or attempt == retries:
            raise answer
        backoff = 0.25 * 2**attempt * (0.75 + random.SystemRandom().random() / 2)
        wait_s = min(_LONGEST_WAIT_S, backoff if wait_s is None else wait_s)
        log.debug("%s; trying again in %.2f s", answer, wait_s)
        time.sleep(wait_s)
    raise ValueError(f"retries is {retries}; it cannot be negative")


def _post_once(
    url: str, headers: Mapping[str, str], body: bytes, timeout_s: float
) -> tuple[Answer | DeliveryError, float | None]:
    """Try once: return the answer, or the failure and the seconds the gateway asked to wait before the next try."""
    try:
        answer = ask("POST", url, headers, body, timeout_s)
    except ValueError as error:
        return DeliveryError(f"{url}: no usable endpoint or header: {error}", permanent=True), None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return DeliveryError(f"{url} cannot be reached: {reason}"), None
    if answer.status == 200:
        return answer, None
    failure = DeliveryError(f"{url} answered {answer.status}: {_said(answer)}", answer.status not in RETRYABLE)
    return failure, _retry_after(answer.headers.get("Retry-After"))


def _said(answer: Answer) -> str:
    """Return the message of an error answer: that of a `google.rpc.Status` or of OpenAI's shape, else its text."""
    message = _of_protobuf(answer).get(2, answer.body[:2000])
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else ""
    try:
        return str(json.loads(answer.body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text


def _of_protobuf(answer: Answer) -> dict[int, int | bytes]:
    """Return the fields of an answer in protobuf; nothing of another, as others answer in their own way."""
    return _fields(answer.body) if answer.headers.get_content_type() == PROTOBUF else {}


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Return the values of a message by field number (of several the last); nothing where it is no message."""
    try:
        return {
            number: varint(message, begin, end)[0] if kind == VARINT else message[begin:end]
            for number, kind, begin, end in walk(message, 0, len(message))
        }
    except WireError:
        return {}


def _raise_rejected(url: str, answer: Answer) -> None:
    """Raise DeliveryError where a 200 says that spans were refused (OTLP's partial success)."""
    partial = _of_protobuf(answer).get(1)
    fields = _fields(partial) if isinstance(partial, bytes) else {}
    count, message = fields.get(1, 0), fields.get(2, b"")
    if isinstance(count, int) and count > 0 and isinstance(message, bytes):
        raise DeliveryError(f"{url} refused {count} spans: {message.decode('utf-8', 'replace')}", permanent=True)


def _retry_after(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None  # an HTTP date; our own backoff serves as well
