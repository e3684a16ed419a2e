"""What clients and networks do wrong: the right code, a span, and no task, socket or memory left behind."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_core import names
from lightning_core.otlp.spans import SpanData, encode_request
from tests.any_json import values
from tests.gateway_rig import Rig, attributes, client, left_quiet, metric, rig, wait_for

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture
def server(running: Rig) -> Iterator[Rig]:
    with left_quiet(running):
        yield running


def post(server: Rig, path: str, body: Any, timeout: float = 30) -> httpx.Response:
    headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.base_url() + path, content=content, headers=headers, timeout=timeout)


def raw(server: Rig, body: bytes, declared: int | None = None) -> socket.socket:
    """A connection on which a chat request, or the beginning of one, was sent."""
    where = urlsplit(server.base_url())
    connection = socket.create_connection((where.hostname or "", where.port or 0), timeout=20)
    connection.sendall(whole_request(server, body, declared))
    return connection


def whole_request(server: Rig, body: bytes, declared: int | None = None, route: str = "chat/completions") -> bytes:
    token, path = server.handle.mint("r.1", "a1", "train"), urlsplit(server.base_url()).path
    head = f"POST {path}/{route} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    head += "Content-Type: application/x-protobuf\r\n" if route == "traces" else ""
    head += f"Content-Length: {len(body) if declared is None else declared}\r\n\r\n"
    return head.encode() + body


CHAT = json.dumps({"model": "policy", "messages": MESSAGES}).encode()
STREAM = json.dumps({"model": "policy", "messages": MESSAGES, "stream": True}).encode()
fields = st.sampled_from(
    [
        *("messages", "prompt", "input", "n", "stream", "stream_options", "tools", "tool_choice", "temperature"),
        *("max_tokens", "logprobs", "response_format", "instructions", "previous_response_id", "text", "reasoning"),
        *("include", "max_output_tokens", "stop", "seed", "parallel_tool_calls", "metadata", "store"),
    ]
)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as made:
        yield made


@settings(max_examples=150)
@given(
    request=st.dictionaries(fields, values, max_size=6),
    path=st.sampled_from(["chat/completions", "completions", "responses", "embeddings"]),
)
def test_no_request_of_any_shape_is_a_fault_of_ours(
    running: Rig, http: httpx.Client, request: dict[str, Any], path: str
) -> None:
    body = json.dumps(request | {"model": "policy"}).encode()
    headers = {"Authorization": "Bearer " + running.handle.mint("r.1", "a1", "train")}
    answer = http.post(f"{running.base_url()}/{path}", content=body, headers=headers)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]


@pytest.mark.parametrize("depth", [100, 249, 250, 251, 252, 253, 254, 255, 500, 1020, 5000])
@pytest.mark.parametrize("field", ["messages", "metadata"])
def test_however_deep_a_body_is_it_is_answered_or_refused(server: Rig, depth: int, field: str) -> None:
    nested = b"[" * depth + b"]" * depth
    for path, other in (("/chat/completions", b'"messages": []'), ("/responses", b'"input": "x"')):
        body = b'{"model": "policy", %s, "%s": %s}' % (other, field.encode(), nested)
        assert post(server, path, body).status_code in (200, 400)


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses", "/embeddings"])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b"7", b'{"model": 3}', b'{"model": "policy"}', b"NaN"])
def test_what_is_no_request_is_400_in_openais_shape(server: Rig, path: str, body: bytes) -> None:
    answer = post(server, path, body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert server.canned.requests == []


def test_a_prompt_of_ten_megabytes_passes_and_is_recorded_whole(server: Rig) -> None:
    words = "0123456789" * 1_000_000
    reply = client(server).chat.completions.create(model="policy", messages=[{"role": "user", "content": words}])
    assert reply.choices
    assert server.canned.requests[-1]["messages"][0]["content"] == words
    span = attributes(server.spans()[-1])
    assert json.loads(span[names.GEN_AI_INPUT_MESSAGES])[0]["content"] == words


def test_what_exceeds_the_limit_is_413(tmp_path: Path) -> None:
    with rig(tmp_path, max_body_mb=0.1) as made:
        with pytest.raises(openai.APIStatusError) as caught:
            client(made).responses.create(model="policy", input="x" * 200_000)
        assert caught.value.status_code == 413 and made.canned.requests == []


def test_a_request_that_never_ends_leaves_nothing(server: Rig) -> None:
    before = len(server.records())
    connections = [raw(server, STREAM[:10], declared=1000) for _ in range(20)]
    for connection in connections:
        connection.close()
    assert client(server).chat.completions.create(model="policy", messages=MESSAGES).choices
    assert len(server.records()) == before + 1 and len(server.canned.requests) == 1


def test_a_client_that_vanishes_in_mid_stream_cancels_the_upstream(server: Rig) -> None:
    server.gate()
    before, cancelled = len(server.records()), server.canned.cancelled
    connections = [raw(server, STREAM) for _ in range(10)]
    for connection in connections:
        assert b"200" in connection.recv(4096)
        # No goodbye: the other side finds out at its next write, or by the reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
    wait_for(lambda: len(server.records()) == before + 10 and server.canned.cancelled == cancelled + 10)
    assert {attributes(span)[names.UNTRAINABLE] for span in server.spans()[-10:]} == {"aborted"}


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_a_client_that_closes_its_sending_half_gets_its_answer(server: Rig, body: bytes) -> None:
    server.gate()
    before = len(server.canned.requests)
    with raw(server, body) as connection:
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: len(server.canned.requests) == before + 1)
        server.open()
        received = until_closed(connection)  # what is asked of the client meanwhile, HTTP/1.1 has it skip
    assert b"HTTP/1.1 200" in received and names.UNTRAINABLE not in attributes(server.spans()[-1])
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") if body is STREAM else b'"Hello world"' in received


def test_one_that_closes_its_sending_half_behind_several_requests_gets_all_its_answers(server: Rig) -> None:
    spans = encode_request({}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])
    with raw(server, CHAT) as connection:
        connection.sendall(whole_request(server, CHAT) + whole_request(server, spans, route="traces"))
        connection.shutdown(socket.SHUT_WR)
        assert until_closed(connection).count(b"HTTP/1.1 200") == 3
    assert server.spans()[-1].name == "work"


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_a_client_that_has_left_is_no_client_that_has_ended_its_sending_half(server: Rig, body: bytes) -> None:
    server.gate()
    before, cancelled = len(server.canned.requests), server.canned.cancelled
    connection = raw(server, body)
    wait_for(lambda: len(server.canned.requests) == before + 1)
    if body is STREAM:
        while b"Hello" not in connection.recv(65536):
            pass
    connection.close()
    wait_for(lambda: server.canned.cancelled == cancelled + 1)
    wait_for(lambda: server.spans()[-1].status.message == "the client disconnected")


def test_pipelined_requests_are_answered_in_turn_and_left_with_their_client(server: Rig) -> None:
    with raw(server, CHAT) as connection:
        connection.sendall(whole_request(server, CHAT) * 2)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 3:
            part = connection.recv(65536)
            assert part, answers
            answers += part
    server.gate()
    before, logged = len(server.canned.requests), (server.home / "logs" / "gateway.log").stat().st_size
    with raw(server, CHAT) as connection:
        wait_for(lambda: len(server.canned.requests) == before + 1)
        connection.sendall(whole_request(server, CHAT) * 2)
        time.sleep(0.1)  # until the server has them
    wait_for(lambda: metric(server, "lightning_calls_in_flight") == 0)
    assert server.spans()[-1].status.message == "the client disconnected"
    server.open()
    assert len(server.canned.requests) == before + 1
    assert b"ERROR" not in (server.home / "logs" / "gateway.log").read_bytes()[logged:]


def test_whenever_clients_leave_spans_and_counters_agree(server: Rig) -> None:
    before, counted = len(server.spans()), metric(server, "lightning_calls_total")
    for number in range(120):
        with raw(server, STREAM if number % 2 else CHAT) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            time.sleep(number % 20 / 1000)
    wait_for(lambda: metric(server, "lightning_calls_in_flight") == 0)
    spans = server.spans()[before:]
    assert metric(server, "lightning_calls_total") - counted == len(spans) > 0
    assert all(len(attributes(span)) > 5 for span in spans)


def test_a_client_that_reads_slowly_gets_everything(server: Rig) -> None:
    connection = raw(server, STREAM)
    received = b""
    while b"0\r\n\r\n" not in received:
        time.sleep(0.005)
        received += connection.recv(64)
    connection.close()
    assert b"[DONE]" in received and names.UNTRAINABLE not in attributes(server.spans()[-1])


@pytest.mark.parametrize("flood", [500, 60])
def test_a_client_that_stops_reading_loses_its_call_and_the_upstream_is_free(tmp_path: Path, flood: int) -> None:
    with rig(tmp_path, client_stalled_s=0.5) as made:
        made.canned.flood = flood  # 32 MB fill every buffer on the way, 4 MB may only fill those of the kernel
        connection = raw(made, STREAM)
        process = psutil.Process(made.handle.pid)
        wait_for(lambda: len(made.records()) == 1)  # the connection stays open, and nothing of it is read
        wait_for(lambda: metric(made, "lightning_calls_in_flight") == 0)
        if flood == 500:
            span = made.spans()[-1]
            assert span.status.code == span.status.STATUS_CODE_ERROR
            assert attributes(span)[names.UNTRAINABLE] == "aborted"
            wait_for(lambda: made.canned.cancelled == 1)
        wait_for(lambda: len([c for c in process.net_connections("tcp") if c.status == "ESTABLISHED"]) <= 2)
        connection.close()


def test_headers_without_end_are_431_and_end_the_connection(server: Rig) -> None:
    where = urlsplit(server.base_url())
    process = psutil.Process(server.handle.pid)
    before = process.memory_info().rss
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as connection:
        connection.sendall(b"POST /v1/models HTTP/1.1\r\n")
        answer = b""
        try:
            for _ in range(1000):
                connection.sendall(b"a: " + b"b" * 60_000 + b"\r\n")
        except ConnectionError:
            with contextlib.suppress(ConnectionError):
                answer = connection.recv(1000)
    assert b" 200 " not in answer and process.memory_info().rss - before < 20_000_000
    assert client(server).models.list().data


def test_headers_too_large_or_broken_never_reach_an_upstream(server: Rig) -> None:
    where = urlsplit(server.base_url())
    for head in (b"POST / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 200_000 + b"\r\n\r\n"):
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as connection:
            try:
                connection.sendall(head)
                answer = connection.recv(100)
            except ConnectionError:
                answer = b""
            assert b" 200 " not in answer
    assert server.canned.requests == [] and client(server).models.list().data


def test_a_low_limit_of_files_is_raised_as_far_as_it_may_be(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with rig(tmp_path) as made:
            found = psutil.Process(made.handle.pid).rlimit(psutil.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == (min(65_536, hard) if hard > 0 else 65_536, hard)
