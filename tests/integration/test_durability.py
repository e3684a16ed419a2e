"""Every acknowledged span is in the lake, once: over kill -9, torn records, retries, a disk without room."""

from __future__ import annotations

import gzip
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from lightning_core.config import GatewaySettings
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Lake
from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.spool.spool_format import segments
from tests.ports import free_port

KINDS = ("http", "grpc", "client")
SENDER = (sys.executable, "-m", "tests.integration.agents_that_send")
KILLS = 4
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def kill(handle: GatewayHandle) -> None:
    os.kill(handle.pid, signal.SIGKILL)
    handle.stop()


def tear(home: Path, chance: random.Random) -> None:
    """Leave what a crash in the middle of a write may leave: the first part of a record behind the last one."""
    _, path = segments(home / "spool")[-1]
    data = path.read_bytes()
    with path.open("ab") as file:
        file.write(data[: chance.randrange(1, 2_000)])


def times_in_lake(home: Path) -> dict[str, int]:
    """How often a span of each name is there, once those of one identity and content are one."""
    lake = Lake(home)
    lake.ingest()
    with lake.connect() as con:
        return dict(
            con.execute(
                "WITH once AS (SELECT DISTINCT rollout_id, attempt_id, trace_id, span_id, content_hash, name FROM spans) "
                "SELECT name, count(*) FROM once GROUP BY ALL"
            ).fetchall()
        )


def test_every_acknowledged_span_is_there_once_however_often_the_server_is_killed(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)  # shown when the test fails
    chance = random.Random(seed)
    settings = GatewaySettings(port=free_port(), grpc_port=free_port())
    stop = tmp_path / "stop"
    handle = GatewayHandle.start(tmp_path, settings, tmp_path / "log")
    endpoints = {"http": handle.url, "grpc": str(handle.grpc_url), "client": handle.url}
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    agents = [
        subprocess.Popen(
            [*SENDER, kind, endpoints[kind], str(tmp_path / kind), str(stop)],
            env=environment,
        )
        for kind in KINDS
    ]
    try:
        for _ in range(KILLS):
            before = handle.seal()
            while handle.seal() - before < 500_000:  # all are at it, also after a restart
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.5))
            kill(handle)
            tear(tmp_path, chance)
            handle = GatewayHandle.start(tmp_path, settings, tmp_path / "log")
        stop.touch()
        assert [agent.wait(120) for agent in agents] == [0, 0, 0]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
        handle.stop()
    found = times_in_lake(tmp_path)
    for kind in KINDS:
        acknowledged = (tmp_path / kind).read_text().splitlines()
        assert len(acknowledged) > 100
        assert {name: found.get(name, 0) for name in acknowledged} == dict.fromkeys(acknowledged, 1)
    log = (tmp_path / "log").read_text()
    assert log.count("were never acknowledged; moved to") == KILLS
    assert "cannot be read back" not in log


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[GatewayHandle]:
    made = GatewayHandle.start(tmp_path, GatewaySettings(), tmp_path / "log")
    yield made
    made.stop()


def post(handle: GatewayHandle, body: bytes, **headers: str) -> httpx.Response:
    token = handle.mint("r", "a", "train")
    url = handle.attempt_url("r", "a") + "/v1/traces"
    return httpx.post(url, content=body, headers=PROTOBUF | {"Authorization": f"Bearer {token}"} | headers, timeout=30)


def export(handle: GatewayHandle, body: bytes) -> None:
    metadata = [("authorization", "Bearer " + handle.mint("r", "a", "train"))]
    with grpc.insecure_channel(str(handle.grpc_url).removeprefix("http://")) as channel:
        channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(body, metadata=metadata)


def spans(*names: str, span_id: bytes | None = None, **attributes: Any) -> bytes:
    return encode_request(
        {},
        [
            SpanData(name, 1, 2, "74" * 16, (span_id or name.encode().rjust(8)).hex(), attributes=attributes)
            for name in names
        ],
    )


def test_a_batch_that_is_sent_again_and_again_counts_once(tmp_path: Path, handle: GatewayHandle) -> None:
    batch = spans("a", "b", "c")
    for _ in range(3):
        assert post(handle, batch).status_code == 200
    assert times_in_lake(tmp_path) == {"a": 1, "b": 1, "c": 1}
    # Retries reach the server after the first was decoded too, by another way, and in another company.
    post(handle, gzip.compress(batch), **{"Content-Encoding": "gzip"})
    export(handle, batch)
    post(handle, spans("c", "d"))
    assert times_in_lake(tmp_path) == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_two_spans_under_one_id_both_stay(tmp_path: Path, handle: GatewayHandle) -> None:
    one, other = spans("one", span_id=b"s" * 8), spans("other", span_id=b"s" * 8)
    both = ExportTraceServiceRequest.FromString(one)
    both.MergeFromString(other)
    for body in (one, both.SerializeToString(), other):
        post(handle, body)
    assert times_in_lake(tmp_path) == {"one": 1, "other": 1}


def test_a_broken_span_loses_no_other(tmp_path: Path, handle: GatewayHandle) -> None:
    broken = b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"b" * 8 + b"\x4a\xff\xff\xff\xff\x0f"
    good = [Span(name=name, trace_id=b"t" * 16, span_id=name.encode().rjust(8)) for name in ("before", "after")]
    parts = [good[0].SerializeToString(), broken, good[1].SerializeToString()]
    scope = b"".join(b"\x12" + bytes([len(part)]) + part for part in parts)
    resource = b"\x12" + _varint(len(scope)) + scope
    assert post(handle, b"\x0a" + _varint(len(resource)) + resource).status_code == 200
    lake = Lake(tmp_path)
    assert lake.ingest().rejected == 1
    assert times_in_lake(tmp_path) == {"before": 1, "after": 1}
    [kept] = [line for file in (tmp_path / "spool" / "rejected").glob("*.jsonl") for line in file.open()]
    assert (b"b" * 8).hex() in kept and '"reason"' in kept


def test_a_json_span_without_a_protobuf_form_is_kept_aside_with_its_reason(
    tmp_path: Path, handle: GatewayHandle
) -> None:
    span = {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "good"}
    body: Any = {"resourceSpans": [{"scopeSpans": [{"spans": [span, span | {"traceId": "no hex"}]}]}]}
    headers = {"Authorization": "Bearer " + handle.mint("r", "a", "train")}
    answer = httpx.post(handle.url + "/v1/traces", json=body, headers=headers)
    assert answer.status_code == 200 and answer.json()["partialSuccess"]["rejectedSpans"] == "1"
    assert "not hexadecimal" in answer.json()["partialSuccess"]["errorMessage"]
    assert Lake(tmp_path).ingest().rejected == 1
    assert times_in_lake(tmp_path) == {"good": 1}
    [kept] = [line for file in (tmp_path / "spool" / "rejected").glob("*.jsonl") for line in file.open()]
    assert "not hexadecimal" in kept


def _varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80, number >> 7]) if number > 0x7F else bytes([number])


@contextmanager
def limited_files(home: Path) -> Iterator[tuple[Any, Any]]:
    """No file of the server may grow past a megabyte: writes fail half way, on any file system and for any user."""

    def limit(handle: GatewayHandle, size: int) -> None:
        _, hard = resource.prlimit(handle.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(handle.pid, resource.RLIMIT_FSIZE, (size, hard))

    yield lambda handle: limit(handle, 1_000_000), lambda handle: limit(handle, resource.RLIM_INFINITY)


@contextmanager
def small_disk(home: Path) -> Iterator[tuple[Any, Any]]:
    """A file system of four megabytes, three of them taken; for root."""
    folder = home / "spool"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(3_000_000))
        yield lambda handle: None, lambda handle: ballast.unlink()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("no_room", [limited_files, small_disk])
def test_without_room_on_the_disk_the_server_goes_on_and_keeps_what_it_acknowledged(
    tmp_path: Path, no_room: Any
) -> None:
    with no_room(tmp_path) as (fill, make_room):
        handle = GatewayHandle.start(tmp_path, GatewaySettings(), tmp_path / "log")
        try:
            fill(handle)
            answers = {str(i): post(handle, spans(str(i), text="x" * 60_000)) for i in range(40)}
            taken = {name for name, answer in answers.items() if answer.status_code == 200}
            assert 3 < len(taken) < 40
            for name in answers.keys() - taken:
                assert answers[name].status_code == 503 and int(answers[name].headers["retry-after"]) > 0
            assert handle.health()["status"] == "ok" and handle.attempt("r", "a")["refused_otlp"] == 40 - len(taken)
            with pytest.raises(grpc.RpcError) as refused:
                export(handle, spans("grpc", text="x" * 60_000))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            make_room(handle)
            assert post(handle, spans("more", text="x" * 60_000)).status_code == 200
            kill(handle)
            handle = GatewayHandle.start(tmp_path, GatewaySettings(), tmp_path / "log")
            export(handle, spans("grpc", text="x" * 60_000))
        finally:
            handle.stop()
        assert times_in_lake(tmp_path) == dict.fromkeys([*taken, "more", "grpc"], 1)
