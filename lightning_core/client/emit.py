"""What an agent calls: `emit_reward`, `emit_message`, `emit_object`, `emit_exception`, `emit_event`, `span`.

Each sends its span at once and waits for the acknowledgement (a millisecond or two on one machine), so that a reward
is safe before the agent goes on. Where the gateway does not answer, spans wait in a file (fallback.py) for the next
emit or for the end of the process, and the agent goes on. Nothing here raises but a reward that is no number, or that names no span.

The scope is the rollout of the block that is current (opened.py), else it comes from the environment of the attempt:
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`. Without an endpoint (the agent runs by itself) they become spans of OpenTelemetry, where the
process has set that up (otel.py); where it has not, nothing is sent, and the log says so once.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import json
import logging
import math
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_core import names
from lightning_core.client import fallback, otel
from lightning_core.client.delivery import DeliveryError, post_request
from lightning_core.client.destination import Destination, current_rollout, destination, of_environment
from lightning_core.otlp.spans import STATUS_ERROR, STATUS_UNSET, SpanData, encode_request, new_span_id, new_trace_id

log = logging.getLogger(__name__)

_Context = tuple[str, str]  # trace id, span id
_SPAN_ID = re.compile(r"[0-9a-fA-F]{16}")
current_span: contextvars.ContextVar[tuple[_Context, _Context | None] | None] = contextvars.ContextVar(
    "lightning_current_span", default=None
)
_warned: set[str] = set()
_at_exit: set[Path] = set()  # what waits there is sent at the end of the process


def emit_reward(
    value: float, name: str = "reward", *, span: Any = None, words: str | None = None, **attributes: Any
) -> None:
    """Give the current rollout a reward.

    `name` tells several kinds apart, `words` say why; `attributes` go onto the reward's span.

    `span`: what the reward is for, also after its end: a span of `span(...)` or of OpenTelemetry, its context, or a
    span id of this rollout (16 hex digits). Default: the span that is current, of OpenTelemetry, where that is set up
    in this process, or one of `span`.
    Raises ValueError where `value` is not a finite number, and where `span` is none of these.
    """
    number = _finite(value)
    own = {names.REWARD: number, names.REWARD_NAME: name, names.REWARD_SOURCE: "agent"}
    if words is not None:
        own[names.REWARD_WORDS] = words
    _emit(names.SPAN_REWARD, {**attributes, **own}, below=None if span is None else _context_of(span))


def emit_message(text: str, **attributes: Any) -> None:
    """Record a text: a span `message` of no length below the current one, with the attribute `lightning.message`."""
    _emit(names.SPAN_MESSAGE, {**attributes, names.MESSAGE: str(text)})


def emit_object(value: Any, **attributes: Any) -> None:
    """Record a value as JSON: a span `object` of no length below the current one, with attribute `lightning.object`.

    What JSON does not know is kept as its `str`; a value that still is no JSON (NaN, a list that holds itself) as its
    `repr`.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(repr(value), ensure_ascii=False)
    _emit(names.SPAN_OBJECT, {**attributes, names.OBJECT: text})


def emit_exception(error: BaseException, **attributes: Any) -> None:
    """Record an exception that the agent has caught.

    It becomes a failed span `exception` of no length below the current one (view `errors`).
    """
    _emit(names.SPAN_EXCEPTION, {**attributes, **_details(error)}, failure=_failure(error))


def emit_event(name: str, **attributes: Any) -> None:
    """Record that something happened now: a span of no length below the current one."""
    _emit(name, attributes)


class Span:
    """The span that a `with span(...)` block is in; `set` adds attributes while it lasts."""

    def __init__(self, data: SpanData, theirs: Any = None) -> None:
        self._data = data
        self._theirs = theirs  # OpenTelemetry's span, where it goes that way
        self._attributes: dict[str, Any] = dict(data.attributes)
        data.attributes = self._attributes

    @property
    def trace_id(self) -> str:
        """Return the trace id: 32 hex digits."""
        return self._data.trace_id

    @property
    def span_id(self) -> str:
        """Return the span id: 16 hex digits."""
        return self._data.span_id

    def set(self, attributes: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Add attributes; a mapping takes names with dots in them."""
        added = {**(attributes or {}), **more}
        self._attributes.update(added)
        if self._theirs is not None:
            self._theirs.set_attributes(otel.attributes(added))


@contextlib.contextmanager
def span(name: str, **attributes: Any) -> Iterator[Span]:
    """Open a span for a block; rewards, events and spans inside become its children.

    An exception marks it as failed and goes on.
    """
    now = time.time_ns()
    tracer = _tracer()
    if tracer is not None:
        with tracer.start_as_current_span(name, attributes=otel.attributes(attributes)) as theirs:
            context = theirs.get_span_context()
            ids = (format(context.trace_id, "032x"), format(context.span_id, "016x"))
            yield Span(SpanData(name, now, now, *ids, attributes=attributes), theirs)
        return
    trace_id, parent_id = _parent()
    data = SpanData(name, now, now, trace_id, new_span_id(), parent_id, attributes)
    handle = Span(data)
    token = current_span.set(((trace_id, data.span_id), _opentelemetry_context()))
    try:
        yield handle
    except BaseException as error:
        data.status, data.status_message = STATUS_ERROR, _failure(error)
        data.events = [(time.time_ns(), names.SPAN_EXCEPTION, _details(error))]
        raise
    finally:
        with contextlib.suppress(ValueError):  # a generator closed elsewhere leaves its context
            current_span.reset(token)
        data.end_ns = max(time.time_ns(), data.start_ns)
        _send(data)


def _finite(value: Any) -> float:
    remedy = "; give a finite number such as 1.0"
    if isinstance(value, str | bytes) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise ValueError(f"emit_reward: {value!r:.80} is a {type(value).__name__}, no number{remedy}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"emit_reward: {value!r:.80} is no number ({error}){remedy}") from None
    if not math.isfinite(number):
        raise ValueError(f"emit_reward: {number} is not finite{remedy}")
    return number


def _context_of(named: Any) -> _Context | None:
    """Return the context of a span that was named; None for OpenTelemetry's span that stands for none."""
    if isinstance(named, Span):
        return named.trace_id, named.span_id
    if isinstance(named, str) and _SPAN_ID.fullmatch(named):
        return _parent()[0], named.lower()  # the lake looks for an id in all of the attempt
    context = named.get_span_context() if hasattr(named, "get_span_context") else named
    if not (hasattr(context, "is_valid") and hasattr(context, "span_id")):
        raise ValueError(
            f"emit_reward: span={named!r:.80} names no span; give a span, its context, or its id (16 hex digits)"
        )
    return _hex(context)


def _failure(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _details(error: BaseException) -> dict[str, str]:
    """Return an exception's details by OpenTelemetry's names."""
    return {
        "exception.type": type(error).__qualname__,
        "exception.message": str(error),
        "exception.stacktrace": "".join(traceback.format_exception(error)),
    }


def _emit(name: str, attributes: Mapping[str, Any], below: _Context | None = None, failure: str | None = None) -> None:
    """Record a span of no length, below the given one, else below the current one; `failure`: why it failed."""
    tracer = _tracer()
    if tracer is not None:
        theirs = tracer.start_span(name, otel.below(*below) if below else None, attributes=otel.attributes(attributes))
        if not theirs.is_recording():
            _warn_once("sampled", f"OpenTelemetry's sampler leaves out spans: {name!r} is not recorded")
        if failure is not None:
            otel.fail(theirs, failure)
        theirs.end()
        return
    trace_id, parent_id = below or _parent()
    now, status = time.time_ns(), STATUS_UNSET if failure is None else STATUS_ERROR
    _send(SpanData(name, now, now, trace_id, new_span_id(), parent_id, attributes, status, failure or ""))


def _parent() -> _Context:
    """Return the innermost current span, ours or OpenTelemetry's; else a new trace."""
    theirs = _opentelemetry_context()
    ours = current_span.get()
    if ours is not None and ours[1] == theirs:
        return ours[0]  # entered inside what OpenTelemetry still calls current
    return theirs or (new_trace_id(), "")


def _opentelemetry_context() -> _Context | None:
    """Return the current OpenTelemetry span, if this process uses OpenTelemetry; it is never imported from here."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not hasattr(trace, "get_current_span"):
        return None
    return _hex(trace.get_current_span().get_span_context())


def _hex(context: Any) -> _Context | None:
    """Return OpenTelemetry's context in hex digits; None where it is of no span."""
    if not context.is_valid:
        return None
    return format(context.trace_id, "032x"), format(context.span_id, "016x")


def _tracer() -> Any | None:
    """Return OpenTelemetry's tracer where spans go through it; None where they are posted from here."""
    return None if current_rollout.get() is not None else otel.tracer()


def _send(data: SpanData) -> None:
    to = destination()
    if to is None:
        _warn_once("no-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT is not set: rewards and spans are not recorded")
        return
    body = encode_request(to.resource, [data])
    try:
        # While others wait the gateway was away a moment ago: one try is enough to see whether it still is.
        post_request(to.endpoint, to.headers, body, retries=0 if fallback.waits(to.waiting) else 3)
    except DeliveryError as error:
        if error.permanent:
            log.error("a span named %r was refused and is lost: %s", data.name, error)
            return
        _keep(to, body, error)
        return
    deliver_waiting(to, retries=0)


def _keep(to: Destination, body: bytes, reason: DeliveryError) -> None:
    try:
        kept = fallback.keep(to.waiting, body)
    except OSError as error:
        log.error("a span is lost: %s, and %s cannot be written: %s", reason, to.waiting, error)
        return
    if not kept:
        log.error("a span is lost: %s, and %s is full", reason, to.waiting)
        return
    _warn_once("kept", f"{reason}; spans wait in {to.waiting} and are sent later")
    _deliver_at_exit(to)


def send_waiting(retries: int = 2) -> int:
    """Send the spans that wait for the gateway of this environment, and return the number of requests sent.

    Every emit that succeeds does this, and the end of a process that could not deliver. Raises DeliveryError or OSError
    where some of them stay or were refused.
    """
    to = of_environment()
    if to is None:
        raise DeliveryError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is not set: it names the gateway to send them to", permanent=True
        )
    return fallback.deliver(to.waiting, to.endpoint, to.headers, retries=retries)


def deliver_waiting(to: Destination, retries: int) -> None:
    """Send the spans that wait there; what is not taken is logged, and stays unless it was refused for good."""
    try:
        sent = fallback.deliver(to.waiting, to.endpoint, to.headers, retries=retries)
    except (DeliveryError, OSError) as error:
        log.warning("not all waiting spans were delivered: %s", error)
        return
    if sent:
        log.info("sent %d requests that had waited", sent)


def _deliver_at_exit(to: Destination) -> None:
    if to.waiting not in _at_exit:
        _at_exit.add(to.waiting)
        atexit.register(deliver_waiting, to, retries=2)


def _warn_once(key: str, message: str) -> None:
    if key not in _warned:
        _warned.add(key)
        log.warning(message)
