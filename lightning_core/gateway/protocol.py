"""uvicorn's HTTP protocol with the bounds it has none for: a request's head in bytes and seconds, a reader that stops.
And with answers for clients that close their sending half once they have asked.

A client that sends headers without end would fill the memory, one that sends none would hold its socket for ever, and one
that stays connected and reads nothing its call, with a place in vLLM. The time between two requests is uvicorn's own
`timeout_keep_alive`, a body's are `http.read_body`'s.

A client that has left looks like one that has only ended its sending half, until something is sent to it: one that has left resets
the connection. Until the reply begins that is `100 Continue`, which HTTP/1.1 has every client skip; in a stream it is a comment.

What is used of uvicorn's insides is in tests/unit/test_gateway_protocol.py, which fails when they move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lightning_core.gateway.http import JSON, HttpError

_STILL_THERE = b"HTTP/1.1 100 Continue\r\n\r\n"
_COMMENT = b"3\r\n:\n\n\r\n"  # a chunk of a stream of events: nothing else is answered in chunks
_PIPELINED = 4  # requests that may wait behind the one being answered, while the connection is still read


def _refusal(status: HTTPStatus, message: str) -> bytes:
    """Return the whole answer to what is no request that a handler could see."""
    body = orjson.dumps(HttpError(status, message).body)
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body


class BoundedHttp(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    head_bytes = 65_536
    head_s = 60.0
    stalled_s = 60.0  # in which nothing of what waits to be sent was taken
    asks_s = 0.25  # between two looks whether a client that sends no more is still there

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._head_size = 0
        self._ended = False  # a request, in the bytes that were read last
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._on_gone: Callable[[], None] | None = None
        self._running: Any = None  # the request that is being answered

    def has_whole_body(self) -> bool:
        """Return whether the request that is being answered has come to its end."""
        return self._running is not None and not self._running.more_body

    def is_gone(self) -> bool:
        return self.transport.is_closing()

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """Call `on_gone` once when the client is gone, soon where it is gone already; None: no more."""
        self._on_gone = on_gone
        if on_gone is not None and self.transport.is_closing():
            self.loop.call_soon(self._tell_gone)

    def _tell_gone(self) -> None:
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_s, transport.close)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # uvicorn tells the last of pipelined requests only
        self._end_head()
        self._end_unread()
        if self._asking is not None:
            self._asking.cancel()
        super().connection_lost(exc)
        self._tell_gone()

    def data_received(self, data: bytes) -> None:
        self._ended = False
        super().data_received(data)
        if not self._in_head:
            return
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_s, self.transport.close)
        # Where a request ended in these bytes, how many of them are the next one's head is not known: a read's at most.
        self._head_size += 0 if self._ended else len(data)
        if self._head_size > self.head_bytes and not self.transport.is_closing():
            message = f"the request's headers have more than {self.head_bytes} bytes"
            self.transport.write(_refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message))
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open: the client sends no more, and waits for answers to all it asked."""
        last = self.cycle
        if self._in_head or last is None or last.more_body or last.response_complete:
            return False
        last.keep_alive = False
        self._ask_whether_there()
        return True

    def _ask_whether_there(self) -> None:
        running = self._running
        if not running.response_started and running.scope["http_version"] == "1.1":
            self.transport.write(_STILL_THERE)
        elif running.chunked_encoding and not running.response_complete:
            self.transport.write(_COMMENT)
        self._asking = self.loop.call_later(self.asks_s, self._ask_whether_there)

    def send_400_response(self, msg: str) -> None:
        self.transport.write(_refusal(HTTPStatus.BAD_REQUEST, msg))
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["lightning.connection"] = self  # type: ignore[typeddict-unknown-key]  # for `http.until_gone`
        self._in_head, self._head_size = True, 0

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()
        if 0 < len(self.pipeline) <= _PIPELINED:
            self.flow.resume_reading()  # uvicorn reads no further then, and would not see the client leave

    def on_message_complete(self) -> None:
        self._ended = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_unread()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_unread()  # what is left of the reply, which close() would wait for

    def _watch_unread(self) -> None:
        self._end_unread()
        if size := self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self.stalled_s, self._check_unread, size)

    def _check_unread(self, before: int) -> None:
        """Cut off a client that took nothing meanwhile: it is gone then, as for any other reason."""
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_unread()

    def _end_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end_head(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded_http(stalled_s: float) -> type[BoundedHttp]:
    """Return the protocol with this bound on readers that stop."""
    return type("BoundedHttp", (BoundedHttp,), {"stalled_s": stalled_s})
