"""HTTP/1.1 as far as calls to model servers need it: POST over kept connections, replies whole or as they come.

A call through a general client's layers costs as much as all the rest of the gateway. Left out on purpose: redirects (they
would take the key, and the request, to where nobody configured), proxies, cookies, compression (none is asked for).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from typing import Any, cast
from urllib.parse import quote, urlsplit

import httptools

# vLLM closes idle connections after 5 s; letting go earlier avoids posting into one that is being closed.
_KEEPALIVE_S = 3.0
_CONNECT_S = 10.0
_BUFFER = 1 << 18  # bytes of a reply that wait here until they are taken
_HEAD_BYTES = 1 << 16
_LARGEST = 1 << 28  # bytes of a reply: more than a million tokens with their logprobs
_SILENT_S = 3600.0  # in which a model server may think, or let a call wait its turn, without a byte
_PATH = "/%:@!$&'()*+,;="  # what a path may have beside letters and digits
# A peer that vanished is noticed in two minutes; where something was sent to it, no probes are, and its own limit (ms) counts.
_PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000}


class Broken(ConnectionError):
    """The connection ended, or gave what is no HTTP, before the reply was complete."""


class Reply(asyncio.Protocol):
    """A connection, and the reply that comes over it; the next one's head comes where the last was read to its end."""

    def __init__(self, connections: Connections) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.idle_since = 0.0
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self.status, self.headers = 0, {}
        self._parts: list[bytes] = []
        self._size = self._received = 0
        self._paused = self._started = self._ended = self._keep = False
        self._problem: Broken | None = None

    @property
    def streams(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    async def ask(self, request: bytes) -> None:
        """Send a request and wait for its reply's head; Broken where none comes."""
        assert self._transport is not None
        self._begin()
        self._transport.write(request)
        while not self._started:
            if self._problem is not None:
                raise self._problem
            await self._wait()
        encoding = self.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Broken(f"the reply is encoded ({encoding!r:.50}), which was not asked for")

    async def begun(self) -> bool:
        """Wait for the body's next byte; False where there is none left. Raises Broken."""
        while not self._parts:
            if self._problem is not None:
                raise self._problem
            if self._ended:
                return False
            await self._wait()
        return True

    async def some(self) -> bytes:
        """Return what has come of the body since, at least a byte of it; nothing at its end. Raises Broken."""
        if not await self.begun():
            return b""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size = [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def read(self) -> bytes:
        """Return all that is left of the body; raises Broken."""
        parts = []
        while part := await self.some():
            parts.append(part)
        return b"".join(parts)

    def release(self) -> None:
        """Release the connection of this reply: it is kept where the reply is complete, else cut."""
        transport = self._transport
        if transport is None:
            return
        sent = not transport.get_write_buffer_size()
        if self._ended and self._keep and sent and not self._paused and not transport.is_closing():
            self._connections.keep(self)
        else:
            transport.abort()

    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        deadline = self._loop.call_later(_SILENT_S, self._give_up, f"nothing came for {_SILENT_S:g} s")
        try:
            await self._waiter
        finally:
            deadline.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, message: str) -> None:
        if not self._ended and self._problem is None:
            self._problem = Broken(message)
        self._wake()

    def _give_up(self, message: str) -> None:
        self._fail(message)
        self.close()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _PROBES.items():
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._give_up(f"the reply is no HTTP: {error}")
            return
        self._received += len(data)
        if self._received > (most := _LARGEST if self._started else _HEAD_BYTES):
            self._give_up(f"the {'reply' if self._started else 'head of the reply'} has more than {most} bytes")
        elif self._started and self._size > _BUFFER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        # The parser refers to this: what waits here would stay until it is collected.
        self._transport = self._parser = None
        self._connections.forget(self)
        until_closed = not {"content-length", "transfer-encoding"} & self.headers.keys()
        if self._started and until_closed and error is None:
            self._ended = True
        self._fail(f"the connection was closed before the reply was complete: {error}" if error else "disconnected")

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._ended:
            raise ValueError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._started = self.status >= 200

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        if self._started:
            self._ended, self._keep = True, self._parser.should_keep_alive()
        else:  # 100 Continue and its like: the reply is still to come
            self.headers = {}


class Connections:
    """To one address: `unix:///path.sock`, `http://host:port` or `https://…`, whose path comes before each request's."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._unix = address.removeprefix("unix://") if parts.scheme == "unix" else None  # which may have a # or ?
        self._host = parts.hostname or ""
        self._context = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (80 if self._context is None else 443)
        self._names = (
            ("vllm", "")
            if self._unix
            else (parts.netloc.rpartition("@")[2].encode("idna").decode(), quote(parts.path, safe=_PATH))
        )
        self._idle: deque[Reply] = deque()  # the longest idle first
        self._sweeping: asyncio.TimerHandle | None = None

    async def post(self, path: str, api_key: str | None, body: bytes) -> Reply:
        """Send a request and return the reply, of which the head has come; call its `release` in the end.

        Raises OSError (Broken too) or TimeoutError.
        """
        request = _head(*self._names, path, api_key) + b"%d\r\n\r\n" % len(body) + body
        reply = self._kept() or await self._connect()
        try:
            await reply.ask(request)
        except BaseException:
            reply.close()
            raise
        return reply

    def _kept(self) -> Reply | None:
        self._close_stale()
        while self._idle:
            if (reply := self._idle.pop()).usable():
                return reply
        return None

    def keep(self, reply: Reply) -> None:
        """Keep the reply's connection for a later request, for a short while."""
        reply.idle_since = time.monotonic()
        self._idle.append(reply)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(_KEEPALIVE_S, self._sweep)

    def forget(self, reply: Reply) -> None:
        if reply in self._idle:
            self._idle.remove(reply)

    def _close_stale(self) -> None:
        oldest = time.monotonic() - _KEEPALIVE_S
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.popleft().close()

    def _sweep(self) -> None:
        self._close_stale()
        self._sweeping = asyncio.get_running_loop().call_later(_KEEPALIVE_S, self._sweep) if self._idle else None

    async def _connect(self) -> Reply:
        loop, made = asyncio.get_running_loop(), lambda: Reply(self)
        async with asyncio.timeout(_CONNECT_S):
            if self._unix is not None:
                return (await loop.create_unix_connection(made, self._unix))[1]
            return (await loop.create_connection(made, self._host, self._port, ssl=self._context))[1]

    def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._idle:
            self._idle.pop().close()


def _head(host: str, base: str, path: str, api_key: str | None) -> bytes:
    """Return all of a request's head but its length.

    Raises ValueError where an address or a key has what would begin another header.
    """
    lines = [f"POST {base}{path} HTTP/1.1", f"Host: {host}", "Accept: */*", "Accept-Encoding: identity"]
    lines += ["Content-Type: application/json", *([f"Authorization: Bearer {api_key}"] if api_key else [])]
    if not all(map(str.isprintable, lines)):
        raise ValueError("an upstream's address or key has control characters in it")
    return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")
