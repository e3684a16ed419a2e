"""Real OpenTelemetry exporters, and hand-made requests, against the real server process."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.spool import spool
from tests.gateway_rig import Rig, rig

PROTOBUF = {"Content-Type": "application/x-protobuf"}
BODY = encode_request({}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home"), max_body_mb=0.2) as made:
        yield made


def bearer(server: Rig, attempt: str = "a1") -> dict[str, str]:
    return {"Authorization": "Bearer " + server.handle.mint("r.1", attempt, "train")}


def traces(server: Rig, body: bytes = BODY, headers: Any = None, base: str | None = None) -> httpx.Response:
    return httpx.post((base or server.handle.attempt_url("r.1", "a1")) + "/v1/traces", content=body, headers=headers)


@pytest.mark.parametrize("compression", list(Compression))
def test_the_sdks_exporter_delivers_into_the_attempts_scope(server: Rig, compression: Compression) -> None:
    results: list[SpanExportResult] = []
    exporter = OTLPSpanExporter(
        endpoint=server.handle.attempt_url("r.1", compression.value) + "/v1/traces",
        headers={k.lower(): v for k, v in bearer(server, compression.value).items()},
        compression=compression,
    )
    export = exporter.export
    exporter.export = lambda spans: results.append(export(spans)) or results[-1]  # type: ignore[method-assign]
    provider = TracerProvider(resource=Resource.create({"service.name": "agent"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("plan") as span:
        span.set_attribute("n", 5)
    assert results == [SpanExportResult.SUCCESS]
    assert server.spans()[-1].name == "plan"
    record = server.records()[-1]
    assert (record.rollout_id, record.attempt_id, record.scope) == ("r.1", compression.value, "path")
    provider.shutdown()


def test_json_is_stored_as_protobuf_and_answered_in_json(server: Rig) -> None:
    span = {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "from-json"}
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
    answer = traces(server, body, bearer(server) | {"Content-Type": "application/json"})
    assert answer.status_code == 200 and answer.json() == {}
    assert server.spans()[-1].span_id.hex() == "cd" * 8


def test_two_hundred_means_that_the_span_is_on_disk(server: Rig) -> None:
    before = len(server.records())
    answer = traces(server, headers=bearer(server) | PROTOBUF)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-protobuf"
    assert len(server.records()) == before + 1 and server.records()[-1].body == BODY
    assert server.handle.seal() == server.handle.health()["spool_offset"] == spool.durable_end(server.home / "spool")


def test_without_a_scope_loopback_is_let_in_and_the_record_says_none(server: Rig) -> None:
    assert traces(server, headers=PROTOBUF, base=server.handle.url).status_code == 200
    record = server.records()[-1]
    assert (record.rollout_id, record.scope) == (None, "none")
    forwarded = PROTOBUF | {"X-Forwarded-For": "8.8.8.8"}
    assert traces(server, headers=forwarded, base=server.handle.url).status_code == 200
    assert traces(server, headers=bearer(server) | PROTOBUF, base=server.handle.url).status_code == 200
    assert (server.records()[-1].attempt_id, server.records()[-1].scope) == ("a1", "token")


def test_a_scope_needs_its_own_token(server: Rig) -> None:
    for headers in ({}, bearer(server, "other"), {"Authorization": "Bearer nonsense"}):
        answer = traces(server, headers=headers | PROTOBUF)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    wrong = traces(server, headers={"Authorization": "Bearer nonsense"} | PROTOBUF, base=server.handle.url)
    assert wrong.status_code == 401


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xff", PROTOBUF, 400),
        (b"{", {"Content-Type": "application/json"}, 400),
        (BODY, {"Content-Type": "text/plain"}, 415),
        (bytes(300_000), PROTOBUF, 413),
        (bytes(900_000), PROTOBUF, 413),
        (gzip.compress(bytes(5_000_000), mtime=0), PROTOBUF | {"Content-Encoding": "gzip"}, 413),
        (gzip.compress(BODY, mtime=0)[:-9], PROTOBUF | {"Content-Encoding": "gzip"}, 400),
        (b"not gzip", PROTOBUF | {"Content-Encoding": "gzip"}, 400),
        (BODY, PROTOBUF | {"Content-Encoding": "br"}, 415),
    ],
)
def test_refusals_are_final_and_say_why_in_a_status_message(
    server: Rig, body: bytes, headers: Any, status: int
) -> None:
    before = len(server.records())
    answer = traces(server, body, headers | bearer(server))
    assert answer.status_code == status
    json_asked = headers["Content-Type"] == "application/json"
    assert answer.json()["message"] if json_asked else Status.FromString(answer.content).message
    assert len(server.records()) == before


def test_a_body_declared_too_large_is_refused_before_it_is_sent(server: Rig) -> None:
    host, port = server.handle.url.removeprefix("http://").split(":")
    head = "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100000000\r\n"
    for more in ("", "Expect: 100-continue\r\n"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(f"{head}{more}\r\n".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_cut_off_at_the_limit(server: Rig) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 100_000
            yield bytes(100_000)

    with contextlib.suppress(httpx.WriteError):  # the connection may be gone before the answer is read
        answer = httpx.post(server.handle.url + "/v1/traces", content=pieces(), headers=PROTOBUF)
        assert answer.status_code == 413
    assert sent < 50_000_000 and server.handle.health()["status"] == "ok"


def test_a_small_body_that_is_much_to_read_does_not_hold_up_the_others(tmp_path: Path) -> None:
    spans = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 90_000 + b"{}]}]}]}"
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    with rig(tmp_path) as server:
        body, answered = gzip.compress(spans), 0
        assert len(body) < 2_000
        host = server.handle.url.removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(host)) as connection:
            connection.request("POST", "/v1/traces", body, headers | bearer(server))
            while not select.select([connection.sock], [], [], 0)[0]:
                answered += server.handle.health()["status"] == "ok"
            assert connection.getresponse().status == 200
        assert answered > 5, "held up, it answers once or twice"
        too_many = gzip.compress(spans.replace(b"{}]}", b"{}," * 20_000 + b"{}]}", 1))
        answer = traces(server, too_many, headers | bearer(server))
        assert answer.status_code == 413 and "spans" in answer.json()["message"]


@pytest.mark.parametrize(("body", "encoding"), [(b"", None), (b"", "gzip"), (gzip.compress(b"", mtime=0), "gzip")])
def test_an_empty_request_is_fine_and_stores_nothing(server: Rig, body: bytes, encoding: str | None) -> None:
    before = len(server.records())
    headers = PROTOBUF | bearer(server) | ({"Content-Encoding": encoding} if encoding else {})
    assert traces(server, body, headers).status_code == 200
    assert len(server.records()) == before


def test_spans_that_are_set_aside_as_they_come_are_counted_where_people_look(tmp_path: Path) -> None:
    spans = [{"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "good"}, {"traceId": "no hex", "spanId": "cd" * 8}]
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()
    with rig(tmp_path) as made:
        traces(made, body, bearer(made) | {"Content-Type": "application/json"}).raise_for_status()
        assert made.handle.attempt("r.1", "a1")["rejected_spans"] == made.handle.health()["rejected_spans"] == 1
        assert "lightning_otlp_rejected_spans_total 1.0" in httpx.get(made.handle.url + "/metrics").text


def test_metrics_and_logs_are_rejected_without_a_retry_or_an_error(
    server: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {k.lower(): v for k, v in bearer(server).items()}
    url = server.handle.attempt_url("r.1", "a1") + "/v1/"
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=url + "metrics", headers=headers))
    provider = MeterProvider(metric_readers=[reader])
    provider.get_meter("m").create_counter("c").add(1)
    assert provider.force_flush()
    provider.shutdown()
    assert OTLPLogExporter(endpoint=url + "logs", headers=headers).export([]) is not None
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add()
    answer = httpx.post(url + "logs", content=request.SerializeToString(), headers=bearer(server) | PROTOBUF)
    partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
    assert partial.rejected_log_records == 1 and "traces only" in partial.error_message
    assert not caplog.records
    text = httpx.get(server.handle.url + "/metrics").text
    assert re.search(r'lightning_otlp_dropped_total\{signal="metrics"\} [1-9]', text)  # the SDK sends again on shutdown


def test_a_full_spool_is_503_with_retry_after_until_it_is_freed(tmp_path: Path) -> None:
    with rig(tmp_path, spool_max_gb=0.000_05) as made:  # 50 kB
        body = encode_request({"pad": "x" * 5_000}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])
        answers = [traces(made, body, bearer(made) | PROTOBUF) for _ in range(12)]
        assert answers[0].status_code == 200 and answers[-1].status_code == 503
        assert int(answers[-1].headers["retry-after"]) > 0
        assert "spool_max_gb" in Status.FromString(answers[-1].content).message
        assert made.handle.attempt("r.1", "a1")["refused_otlp"] > 0
        assert made.handle.health()["refused_otlp"] == made.handle.attempt("r.1", "a1")["refused_otlp"]
        # A call is refused before anything is sampled, where its span would find no room.
        made_calls = len(made.canned.requests)
        filling = encode_request({"pad": "x" * 300}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])
        while traces(made, filling, bearer(made) | PROTOBUF).status_code == 200:
            pass
        call = {"model": "policy", "messages": [{"role": "user", "content": "x" * 2_000}]}
        answer = httpx.post(made.base_url() + "/chat/completions", json=call, headers=bearer(made))
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["error"]["type"] == "server_error"
        assert made.handle.attempt("r.1", "a1")["infrastructure_errors"] == 1
        assert len(made.canned.requests) - made_calls <= 1
        spool.drop_before(tmp_path / "spool", made.handle.seal())
        time.sleep(0.3)  # the writer looks at the folder a few times a second
        assert traces(made, body, bearer(made) | PROTOBUF).status_code == 200
