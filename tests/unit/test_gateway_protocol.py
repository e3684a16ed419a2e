"""The bounds on a request's head, at a real socket, and what of uvicorn's insides they stand on."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lightning_core.gateway import protocol
from lightning_core.gateway.main import Server
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


async def answers(*sent: bytes, pause_s: float = 0.0, http: type[BoundedHttp] = Hasty) -> list[bytes]:
    """What comes back after each of these is sent on one connection, b"" once that is closed."""
    config = uvicorn.Config(app, port=0, http=http, lifespan="off", log_config=None)
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


# What `BoundedHttp` uses of uvicorn and what uvicorn calls of it. Where this fails after an upgrade, read protocol.py beside
# uvicorn's httptools_impl.py, then change it here and raise the bound in pyproject.toml.
OVERRIDDEN = {
    "connection_made": ["self", "transport"],
    "connection_lost": ["self", "exc"],
    "data_received": ["self", "data"],
    "eof_received": ["self"],
    "send_400_response": ["self", "msg"],
    "on_message_begin": ["self"],
    "on_headers_complete": ["self"],
    "on_message_complete": ["self"],
    "on_response_complete": ["self"],
    "pause_writing": ["self"],
    "resume_writing": ["self"],
    "_start_asgi_task": ["self", "cycle", "app"],
}
OF_PROTOCOL = {"transport", "loop", "scope", "cycle", "pipeline", "flow"}
OF_CYCLE = {
    *("more_body", "response_complete", "response_started", "disconnected", "keep_alive", "chunked_encoding", "scope"),
}


def parameters(method: Any) -> list[str]:
    return list(inspect.signature(method).parameters)


def test_uvicorns_insides_are_where_they_were() -> None:
    for name, expected in OVERRIDDEN.items():
        assert parameters(getattr(HttpToolsProtocol, name)) == expected, name
    assert parameters(uvicorn.Server.startup) == parameters(uvicorn.Server.shutdown) == ["self", "sockets"]
    seen: list[Any] = []

    class Watched(BoundedHttp):
        def on_response_complete(self) -> None:
            seen.append((set(vars(self)), set(vars(self._running)), self.flow, list(self.pipeline)))
            super().on_response_complete()

    assert asyncio.run(answers(GET, http=Watched))[0].startswith(b"HTTP/1.1 200")
    [(of_protocol, of_cycle, flow, waiting)] = seen
    assert of_protocol >= OF_PROTOCOL and of_cycle >= OF_CYCLE and waiting == []
    assert callable(flow.resume_reading) and "should_exit" in vars(uvicorn.Server(uvicorn.Config(app)))


def test_nothing_else_of_uvicorns_is_used() -> None:
    """So that the lists above are all there is."""
    [cls] = [n for n in ast.parse(inspect.getsource(protocol)).body if isinstance(n, ast.ClassDef)]
    own = {n.attr for n in ast.walk(cls) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    own |= {n.name for n in cls.body if isinstance(n, ast.FunctionDef)}
    own |= {n.id for n in ast.walk(cls) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    of_self = {n.attr for n in ast.walk(cls) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"}
    of_cycle = {
        n.attr
        for n in ast.walk(cls)
        if isinstance(n, ast.Attribute)
        and ast.unparse(n.value) in ("self._running", "self.cycle", "running", "last", "cycle")
    }
    assert of_self - own == OF_PROTOCOL and of_cycle == OF_CYCLE
    overridden = {n.name for n in cls.body if isinstance(n, ast.FunctionDef)} & set(dir(HttpToolsProtocol))
    assert overridden - {"__init__"} == set(OVERRIDDEN)
    assert {"startup", "shutdown"} <= set(vars(Server))


def test_no_uvicorn_that_nobody_has_looked_at_is_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [wanted] = [r for r in map(Requirement, project["dependencies"]) if r.name == "uvicorn"]
    assert uvicorn.__version__ in wanted.specifier and "1.0" not in wanted.specifier
