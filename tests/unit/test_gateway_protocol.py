"""The bounds on a request's head, at a real socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import uvicorn

from lightning_core.gateway.protocol import BoundedHttp


class Hasty(BoundedHttp):
    head_bytes = 1000
    head_s = 0.2


async def app(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def answers(*sent: bytes, pause_s: float = 0.0) -> list[bytes]:
    """What comes back after each of these is sent on one connection, b"" once that is closed."""
    config = uvicorn.Config(app, port=0, http=Hasty, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
    found = []
    for data in sent:
        writer.write(data)
        await asyncio.sleep(pause_s)
        found.append(await reader.read(4096))
    writer.close()
    server.should_exit = True
    await running
    return found


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def test_requests_on_one_connection_are_answered_however_far_apart() -> None:
    first, second = asyncio.run(answers(GET, GET, pause_s=0.5))
    assert first.startswith(b"HTTP/1.1 200") and second.startswith(b"HTTP/1.1 200")


def test_a_body_may_be_larger_than_a_head() -> None:
    post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + b"b" * 5000
    assert asyncio.run(answers(post + GET))[0].startswith(b"HTTP/1.1 200")
    both = asyncio.run(answers(post + GET[:8], GET[8:]))  # a head that begins where a body ends
    assert all(answer.startswith(b"HTTP/1.1 200") and b"431" not in answer for answer in both)


def test_a_connection_that_says_nothing_or_stops_in_its_head_is_closed() -> None:
    assert asyncio.run(answers(b"")) == [b""]
    assert asyncio.run(answers(b"GET / HTTP/1.1\r\nhost")) == [b""]
    assert asyncio.run(answers(GET, b"GET / HT"))[1] == b""


@pytest.mark.parametrize(
    ("request_", "status"), [(b"GET / HTTP/1.1\r\na: " + b"b" * 2000, 431), (b"no request at all\r\n\r\n", 400)]
)
def test_a_head_past_its_bound_and_what_is_no_http_are_refused_in_openais_shape(request_: bytes, status: int) -> None:
    head, _, body = asyncio.run(answers(request_))[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"content-length: %d\r\n" % len(body) in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
