"""What is sent takes memory and time from its sender alone: who it is is known first, and no body is waited for without end."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
import httpx
import openai
import pytest

from lightning_core import names
from lightning_core.gateway import otlp_grpc
from lightning_core.gateway.access import Access
from lightning_core.gateway.intake import Intake
from lightning_core.gateway.otlp_grpc import GrpcReceiver
from lightning_core.gateway.revoked import Revoked
from lightning_core.gateway.room import Room
from lightning_core.gateway.service_files import load_secret
from lightning_core.gateway.stats import Stats
from lightning_core.otlp.json_values import MOST_VALUES, has_too_many_values
from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.spool.spool import SpoolWriter
from tests.gateway_rig import Rig, attributes, client, rig, wait_for

MB = 1_000_000
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


def most_memory(server: Rig) -> int:
    """The most bytes that the gateway has had since it started."""
    status = Path(f"/proc/{server.handle.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def export(server: Rig, body: bytes, token: str | None) -> grpc.StatusCode:
    address = str(server.handle.grpc_url).removeprefix("http://")
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
        try:
            channel.unary_unary(EXPORT)(body, metadata=metadata, timeout=60)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_who_has_no_token_that_is_one_takes_no_memory_over_grpc(server: Rig) -> None:
    before, body = most_memory(server), bytes(60 * MB)
    forged = server.handle.mint("r.1", "a1", "train")[:-2]
    with ThreadPoolExecutor(6) as pool:
        codes = set(pool.map(lambda _: export(server, body, forged), range(6)))
    assert codes == {grpc.StatusCode.UNAUTHENTICATED}
    assert most_memory(server) - before < 60 * MB


def test_messages_over_grpc_are_read_a_few_at_a_time(server: Rig) -> None:
    before = most_memory(server)
    body = encode_request({"pad": "x" * 30 * MB}, [SpanData("big", 1, 2, "74" * 16, "73" * 8)])
    token = server.handle.mint("r.1", "a1", "train")
    with ThreadPoolExecutor(18) as pool:
        codes = list(pool.map(lambda _: export(server, body, token), range(18)))
    assert grpc.StatusCode.OK in codes and set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert most_memory(server) - before < 450 * MB  # of two that are read and four that are stored


def begun(server: Rig, size: int, sent: int, token: str | None = None) -> socket.socket:
    """A connection on which a part of a request's body was sent, and no more of it comes."""
    where = urlsplit(server.handle.url)
    connection = socket.create_connection((where.hostname or "", where.port or 0), timeout=60)
    head = f"POST /v1/traces HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/x-protobuf\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    connection.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode() + bytes(sent))
    return connection


def test_who_sends_slowly_and_without_a_token_shuts_nobody_else_out(server: Rig) -> None:
    slow = [begun(server, 60 * MB, 55 * MB) for _ in range(2)]
    try:
        with begun(server, 60 * MB, 40 * MB) as one_more:
            answer = one_more.recv(4096)
            assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after" in answer.lower()
        headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
        body = encode_request({"pad": "x" * 20 * MB}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])
        url = server.handle.attempt_url("r.1", "a1") + "/v1/traces"
        answered = httpx.post(
            url, content=body, headers=headers | {"Content-Type": "application/x-protobuf"}, timeout=60
        )
        assert answered.status_code == 200
    finally:
        for connection in slow:
            connection.close()


def test_an_attempts_calls_count_against_its_share_until_they_end(server: Rig) -> None:
    server.gate()
    text = [{"role": "user", "content": "x" * 45 * MB}]

    def ask(rollout: str, messages: Any) -> Any:
        return client(server, rollout, timeout=120).chat.completions.create(model="policy", messages=messages)

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, "wide", text) for _ in range(2)]
        wait_for(lambda: len(server.canned.requests) == 2, 60)
        with pytest.raises(openai.InternalServerError) as caught:
            ask("wide", text)
        assert caught.value.code == "sender_room_used_up"
        another = pool.submit(ask, "another", MESSAGES)
        server.open()
        assert another.result().choices and all(call.result().choices for call in calls)
    seen = server.handle.attempt("wide", "a1")
    assert seen["refused"] == {"sender_room_used_up": 1} and seen["infrastructure_errors"] == 0
    server.canned.gate = None
    server.canned.requests.clear()
    assert ask("wide", MESSAGES).choices


def test_a_large_body_is_not_read_where_the_attempt_may_make_no_call(tmp_path: Path) -> None:
    with rig(tmp_path, calls_per_rollout=1) as made:
        client(made).chat.completions.create(model="policy", messages=MESSAGES)
        token, where = made.handle.mint("r.1", "a1", "train"), urlsplit(made.base_url())
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=60) as connection:
            head = f"POST {where.path}/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            connection.sendall(f"{head}Content-Length: {60 * MB}\r\n\r\n".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")
        span = made.spans()[-1]
        assert attributes(span)[names.ERROR_TYPE] == "rollout_budget_exceeded"
        assert names.GEN_AI_REQUEST_MODEL not in attributes(span)


@pytest.mark.parametrize("value", [b"[]", b"{}", b'""', b'{"a":[1]}', b'"\\""'])
def test_json_of_very_many_values_is_refused_before_it_is_read(server: Rig, value: bytes) -> None:
    many = b"[" + b",".join([value] * (20 * MB // len(value))) + b"]"
    headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
    for path, needed in (("/chat/completions", b"messages"), ("/responses", b"input"), ("/embeddings", b"input")):
        body = b'{"model": "nobody", "%s": %s}' % (needed, many)
        answer = httpx.post(server.base_url() + path, content=body, headers=headers, timeout=60)
        assert answer.status_code == 413 and "texts, lists and objects" in answer.json()["error"]["message"]
    body = b'{"resourceSpans": %s}' % many
    url = server.handle.attempt_url("r.1", "a1") + "/v1/traces"
    answer = httpx.post(url, content=body, headers=headers | {"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 413 and "texts, lists and objects" in answer.json()["message"]


@pytest.mark.parametrize(
    ("value", "fewest"),
    [(["a", {}, 1], MOST_VALUES // 4), ("text", MOST_VALUES // 2), ([], MOST_VALUES // 2), (7, 15 * MOST_VALUES)],
)
def test_values_are_counted(value: Any, fewest: int) -> None:
    assert not has_too_many_values(json.dumps([value] * fewest).encode())
    assert has_too_many_values(json.dumps([value] * (2 * fewest)).encode())


@pytest.mark.parametrize("text", ['[{"a": "b"}, 7]', "\\", '"', '\\"', "x" * 65_535 + '",[', '",' * 9, "é[,"])
def test_what_is_in_texts_is_no_value(text: str) -> None:
    many = text * (8_000_000 // len(text))
    for begin in range(3):  # however the steps cut it
        assert not has_too_many_values(json.dumps(["x" * begin, many, many]).encode())
    assert not has_too_many_values(json.dumps([many]).encode()[:-2])
    assert not has_too_many_values(b'["' + b"\\" * 65_536 * 2 + b"\\")


@pytest.mark.parametrize(
    "body",
    [b"\x0a\x00" * 10 * MB, b"\x0a\x02\x12\x00" * 5 * MB, b"\x0a\x84\x89\x7a\x12\x80\x89\x7a" + b"\x12\x00" * MB],
)
def test_protobuf_of_very_many_parts_is_refused_before_it_is_read(server: Rig, body: bytes) -> None:
    before = most_memory(server)
    url = server.handle.attempt_url("r.1", "a1") + "/v1/traces"
    headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
    answer = httpx.post(url, content=body, headers=headers | {"Content-Type": "application/x-protobuf"}, timeout=60)
    assert answer.status_code == 413 and b"resources, scopes and spans" in answer.content
    assert most_memory(server) - before < 100 * MB


def test_a_prompt_of_a_million_tokens_is_none_too_many(server: Rig) -> None:
    body = json.dumps({"model": "policy", "prompt": [70_000] * MB}).encode()
    headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
    assert httpx.post(server.base_url() + "/completions", content=body, headers=headers, timeout=60).status_code == 200


def test_a_message_over_grpc_that_never_comes_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_grpc, "BODY_S", 0.2)

    async def main() -> grpc.StatusCode:
        spool = SpoolWriter(tmp_path / "spool", MB)
        access = Access(load_secret(tmp_path), Revoked(tmp_path))
        receiver = GrpcReceiver(access, Intake(spool, Stats(), MB, Room(4 * MB)))
        port = await receiver.start("127.0.0.1", 0)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                code: grpc.StatusCode = await channel.stream_unary(EXPORT)().code()
                assert await channel.unary_unary(EXPORT)(encode_request({}, [])) == b""
                return code
        finally:
            await receiver.stop(1)
            spool.close()

    assert asyncio.run(main()) is grpc.StatusCode.DEADLINE_EXCEEDED
