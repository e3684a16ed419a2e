"""The client for model servers, against sockets that answer in every way HTTP allows, and some it does not."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_core.gateway import http_client
from lightning_core.gateway.http_client import Broken, Connections

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Answers:
    """A server that gives each request the next of some answers; None in one is a pause, its end a closed connection."""

    def __init__(self, *answers: list[bytes | None], kept: bool = True) -> None:
        self.answers, self.kept = list(answers), kept
        self.requests: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for part in self.answers.pop(0):
                    await asyncio.sleep(0.01 if part is None else 0)
                    writer.write(part or b"")
                    await writer.drain()
                if not self.kept:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def run(answers: Answers, work: Callable[[Connections], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        server = await asyncio.start_server(answers.serve, "127.0.0.1", 0)
        connections = Connections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base")
        try:
            return await asyncio.wait_for(work(connections), 10)
        finally:
            connections.close()
            server.close()

    return asyncio.run(main())


async def whole(connections: Connections, body: bytes = b"{}") -> tuple[int, bytes]:
    reply = await connections.post("/chat", "key", body)
    try:
        return reply.status, await reply.read()
    finally:
        reply.release()


def test_requests_are_whole_and_a_connection_is_used_again() -> None:
    answers = Answers([WHOLE], [WHOLE])

    async def twice(connections: Connections) -> Any:
        return await whole(connections, b"x" * 100_000), await whole(connections)

    assert run(answers, twice) == ((200, b"ok"), (200, b"ok"))
    head, _, body = answers.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /base/chat HTTP/1.1\r\nHost: 127.0.0.1:") and body == b"x" * 100_000
    assert b"Authorization: Bearer key\r\n" in head and answers.connections == 1


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n", None, b"1\r\nk\r\n0\r\n\r\n"], True),
        ([b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n", None, WHOLE], True),
        ([WHOLE[:10], None, WHOLE[10:-1], None, WHOLE[-1:]], True),
        ([b"HTTP/1.1 200 OK\r\n\r\no", None, b"k"], False),
        ([b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"], False),
        ([b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"], False),
    ],
)
def test_replies_come_whole_however_they_are_framed_and_cut(parts: list[bytes | None], kept: bool) -> None:
    answers = Answers(parts, [WHOLE], kept=kept)

    async def twice(connections: Connections) -> Any:
        return await whole(connections), await whole(connections)

    assert run(answers, twice) == ((200, b"ok"), (200, b"ok"))
    assert answers.connections == (1 if kept else 2)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"],
        [b"220 mail ready\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000],
        [b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nok"],
    ],
)
def test_what_is_no_whole_reply_is_broken(parts: list[bytes | None]) -> None:
    with pytest.raises(Broken):
        run(Answers(parts, kept=False), whole)


class Endless(Answers):
    """Answers with a head and then the same bytes for as long as it is listened to, or with nothing more."""

    def __init__(self, head: bytes, again: bytes = b"") -> None:
        super().__init__()
        self.head, self.again, self.left = head, again, asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.head)
            while self.again:
                writer.write(self.again)
                await writer.drain()
            await reader.read(1 << 20)  # of the request, then the end
            await reader.read(1)
        except ConnectionError:
            pass
        self.left.set()
        writer.close()


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        (CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        (CHUNKED + b"1;", b"x" * 65536),  # a chunk's extension
        (CHUNKED.replace(b"OK", b"OK\r\ncontent-type: text/event-stream"), b"8\r\ndata: x\n\r\n" * 8192),
    ],
)
def test_a_reply_without_an_end_is_broken_and_its_connection_cut(
    head: bytes, again: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "_LARGEST", 4_000_000)
    answers = Endless(head, again)

    async def all_of_it(connections: Connections) -> None:
        with pytest.raises(Broken, match="more than 4000000 bytes"):
            await whole(connections)
        await answers.left.wait()

    run(answers, all_of_it)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"])
def test_a_server_that_falls_silent_is_left(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_SILENT_S", 0.2)
    answers = Endless(head)

    async def wait(connections: Connections) -> None:
        with pytest.raises(Broken, match=r"nothing came for 0\.2 s"):
            await whole(connections)
        await answers.left.wait()

    run(answers, wait)


def test_a_server_that_takes_the_connection_and_does_not_greet_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_CONNECT_S", 0.2)

    async def main() -> None:
        server = await asyncio.start_server(Endless(b"").serve, "127.0.0.1", 0)
        connections = Connections(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(TimeoutError):
            await connections.post("/chat", None, b"{}")
        server.close()

    asyncio.run(main())


def test_a_reply_with_more_behind_it_ends_its_connection() -> None:
    answers = Answers([WHOLE + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"], [WHOLE])

    async def twice(connections: Connections) -> Any:
        return await whole(connections), await whole(connections)

    assert run(answers, twice) == ((200, b"ok"), (200, b"ok")) and answers.connections == 2


def test_a_reader_that_takes_nothing_stops_the_sender_and_gets_it_all_later() -> None:
    size = 50_000_000
    answers = Answers([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, b"x" * size])

    async def slowly(connections: Connections) -> Any:
        reply = await connections.post("/chat", None, b"{}")
        await asyncio.sleep(0.2)
        waiting, length = reply._size, 0
        while part := await reply.some():
            length += len(part)
        reply.release()
        return waiting, length

    waiting, length = run(answers, slowly)
    assert waiting < 2_000_000 and length == size


def test_what_a_left_reply_had_waiting_is_freed_at_once() -> None:
    answers = Answers([b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n", b"x" * 9_000_000])

    async def leave(connections: Connections) -> Any:
        reply = await connections.post("/chat", None, b"{}")
        await asyncio.sleep(0.1)
        assert reply._size
        kept = weakref.ref(reply)
        reply.release()
        del reply
        await asyncio.sleep(0.1)
        return kept()

    gc.collect()
    gc.disable()
    try:
        assert run(answers, leave) is None
    finally:
        gc.enable()


def test_a_reply_that_is_left_is_cut_and_idle_connections_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_KEEPALIVE_S", 0.05)
    answers = Answers([WHOLE[:-1]], [WHOLE], [WHOLE])

    async def leave(connections: Connections) -> Any:
        reply = await connections.post("/chat", None, b"{}")
        reply.release()
        await whole(connections)
        await asyncio.sleep(0.2)
        left = len(connections._idle)
        await whole(connections)
        return left

    assert run(answers, leave) == 0 and answers.connections == 3


def test_an_address_may_have_letters_that_http_has_not() -> None:
    names = Connections("http://käse.example:8080/ä b/v1%20x")._names
    assert names == ("xn--kse-qla.example:8080", "/%C3%A4%20b/v1%20x")
    assert Connections("http://[::1]:80/v1")._names == ("[::1]:80", "/v1")


def test_a_sockets_path_may_have_letters_that_mean_something_in_urls(tmp_path: Path) -> None:
    path = tmp_path / "run #1?" / "v.sock"
    path.parent.mkdir()

    async def main() -> Any:
        server = await asyncio.start_unix_server(Answers([WHOLE]).serve, path)
        async with server:
            return await whole(Connections(f"unix://{path}"))

    assert asyncio.run(main()) == (200, b"ok")


def test_a_peer_that_vanishes_is_noticed_in_two_minutes_also_while_it_is_sent_something() -> None:
    async def limits(connections: Connections) -> Any:
        reply = await connections.post("/chat", None, b"{}")
        assert reply._transport is not None
        sock = reply._transport.get_extra_info("socket")
        level = socket.IPPROTO_TCP
        idle, every, count, unacknowledged = (
            sock.getsockopt(level, getattr(socket, f"TCP_{name}"))
            for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
        )
        reply.release()
        return idle + every * count, unacknowledged

    assert run(Answers([WHOLE]), limits) == (120, 120_000)


def test_a_key_cannot_begin_another_header() -> None:
    with pytest.raises(ValueError, match="control characters"):
        run(Answers(), lambda connections: connections.post("/chat", "key\r\nx: y", b"{}"))
