"""OTLP/gRPC: OpenTelemetry's own exporters, and requests they would never send, against the real server process."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lightning_core.config import GatewaySettings
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.spool import spool
from tests.gateway_rig import Rig, rig

TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
LOGS = "opentelemetry.proto.collector.logs.v1.LogsService"
BODY = encode_request({}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])
OK = grpc.StatusCode.OK


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home"), max_body_mb=6) as made:
        yield made


def finished(name: str, **attributes: Any) -> list[ReadableSpan]:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with provider.get_tracer("t").start_as_current_span(name, attributes=attributes):
        pass
    return list(kept.get_finished_spans())


def exporter(handle: GatewayHandle, token: str | None = None, **options: Any) -> OTLPSpanExporter:
    headers = {"authorization": f"Bearer {token}"} if token else None
    return OTLPSpanExporter(endpoint=handle.grpc_url, insecure=True, headers=headers, **options)


def call(
    server: Rig, body: bytes, service: str = TRACES, token: str | None = None, compression: Any = None
) -> tuple[grpc.StatusCode, str, dict[str, Any], bytes]:
    """(code, message, trailing metadata, response) of one export."""
    address = str(server.handle.grpc_url).removeprefix("http://")
    metadata = [("authorization", token)] if token else None
    with grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel:
        method = channel.unary_unary(f"/{service}/Export")
        try:
            return OK, "", {}, method(body, metadata=metadata, compression=compression, timeout=30)
        except grpc.RpcError as error:
            return error.code(), error.details(), dict(error.trailing_metadata() or ()), b""


@pytest.mark.parametrize("compression", list(grpc.Compression))
def test_the_sdks_exporter_delivers_into_the_attempts_scope(server: Rig, compression: grpc.Compression) -> None:
    token = server.handle.mint("r.1", f"c{compression.value}", "train")
    sender = exporter(server.handle, token, compression=compression)
    assert sender.export(finished("plan", n=5, text="x" * 5000)) is SpanExportResult.SUCCESS
    sender.shutdown()
    assert server.spans()[-1].name == "plan"
    record = server.records()[-1]
    assert (record.rollout_id, record.attempt_id, record.scope) == ("r.1", f"c{compression.value}", "token")


def test_the_environment_alone_sends_an_agents_spans_here(server: Rig) -> None:
    agent = (
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import BatchSpanProcessor\n"
        "from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter\n"
        "provider = TracerProvider()\n"
        "provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))\n"
        "provider.get_tracer('t').start_span('from the environment').end()\n"
        "provider.shutdown()\n"
    )
    environment = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": str(server.handle.grpc_url),
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20" + server.handle.mint("r.1", "environment", "train"),
    }
    subprocess.run([sys.executable, "-c", agent], env=os.environ | environment, check=True, timeout=60)
    assert server.spans()[-1].name == "from the environment"
    assert server.records()[-1].attempt_id == "environment"


def test_a_request_beyond_grpcs_own_four_megabytes_is_taken_as_it_was_sent(server: Rig) -> None:
    body = encode_request({"pad": "x" * 5_500_000}, [SpanData("big", 1, 2, "74" * 16, "73" * 8)])
    assert call(server, body)[0] is OK
    assert server.records()[-1].body == body


def test_ok_means_that_the_span_is_on_disk_and_an_empty_request_is_fine(server: Rig) -> None:
    before = len(server.records())
    code, _, _, answer = call(server, BODY)
    assert code is OK and not ExportTraceServiceResponse.FromString(answer).HasField("partial_success")
    assert len(server.records()) == before + 1
    assert server.handle.seal() == spool.durable_end(server.home / "spool")
    assert call(server, b"")[0] is OK and len(server.records()) == before + 1


def test_who_may_send(server: Rig) -> None:
    assert call(server, BODY)[0] is OK  # loopback, as over HTTP
    assert (server.records()[-1].rollout_id, server.records()[-1].scope) == (None, "none")
    for token in ("Bearer nonsense", "nonsense", "Bearer " + server.handle.mint("r", "a", "train")[:-2]):
        code, message, _, _ = call(server, BODY, token=token)
        assert code is grpc.StatusCode.UNAUTHENTICATED and "token" in message
        assert call(server, b"", LOGS, token=token)[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("body", "compression", "code"),
    [
        (b"any text at all", None, grpc.StatusCode.INVALID_ARGUMENT),
        (BODY[:-3], None, grpc.StatusCode.INVALID_ARGUMENT),
        (gzip.compress(BODY, mtime=0)[:-9], None, grpc.StatusCode.INVALID_ARGUMENT),
        (gzip.compress(bytes(80_000_000), mtime=0), None, grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(80_000_000), grpc.Compression.Gzip, grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(100_000_000), None, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_refusals_say_why_and_store_nothing(server: Rig, body: bytes, compression: Any, code: grpc.StatusCode) -> None:
    before, process = len(server.records()), psutil.Process(server.handle.pid)
    memory = process.memory_info().rss
    found, message, _, _ = call(server, body, compression=compression)
    assert found is code and message
    assert len(server.records()) == before
    assert process.memory_info().rss - memory < 40_000_000  # a bomb of 80 MB is not inflated
    assert call(server, BODY)[0] is OK


def test_metrics_and_logs_are_rejected_without_a_retry_or_an_error(
    server: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    address = server.handle.grpc_url
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=address, insecure=True))
    provider = MeterProvider(metric_readers=[reader])
    provider.get_meter("m").create_counter("c").add(1)
    assert provider.force_flush()
    provider.shutdown()
    OTLPLogExporter(endpoint=address, insecure=True).export([])
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add()
    code, _, _, answer = call(server, request.SerializeToString(), LOGS)
    partial = ExportLogsServiceResponse.FromString(answer).partial_success
    assert code is OK and partial.rejected_log_records == 1 and "traces only" in partial.error_message
    assert not caplog.records
    assert 'route="grpc_metrics",status="OK"' in httpx.get(server.handle.url + "/metrics").text


def test_other_services_and_methods_are_unimplemented(server: Rig) -> None:
    assert call(server, BODY, "some.other.Service")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_full_spool_is_unavailable_and_the_sdk_comes_again_when_told(tmp_path: Path) -> None:
    with rig(tmp_path, spool_max_gb=0.000_05) as made:  # 50 kB
        token = "Bearer " + made.handle.mint("r.1", "a1", "train")
        body = encode_request({"pad": "x" * 5_000}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])
        answers = [call(made, body, token=token) for _ in range(12)]
        assert answers[0][0] is OK
        code, message, trailing, _ = answers[-1]
        assert code is grpc.StatusCode.UNAVAILABLE and "spool_max_gb" in message
        status = Status.FromString(trailing["grpc-status-details-bin"])
        retry = RetryInfo()
        assert status.code == 14 and status.details[0].Unpack(retry) and retry.retry_delay.seconds == 2
        assert RetryInfo.FromString(trailing["google.rpc.retryinfo-bin"]) == retry
        assert made.handle.attempt("r.1", "a1")["refused_otlp"] > 0
        sender = exporter(made.handle, token.removeprefix("Bearer "), timeout=30)
        results: list[SpanExportResult] = []
        waiting = threading.Thread(target=lambda: results.append(sender.export(finished("patient", pad="x" * 5_000))))
        refused = made.handle.attempt("r.1", "a1")["refused_otlp"]
        waiting.start()
        while made.handle.attempt("r.1", "a1")["refused_otlp"] == refused and waiting.is_alive():
            time.sleep(0.02)
        spool.drop_before(tmp_path / "spool", made.handle.seal())
        waiting.join()
        assert results == [SpanExportResult.SUCCESS]
        sender.shutdown()


def test_a_fixed_port_is_kept_over_a_restart_and_none_turns_it_off(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for _ in range(2):
        handle = GatewayHandle.start(tmp_path, GatewaySettings(grpc_port=port), tmp_path / "log")
        assert handle.grpc_url == f"http://127.0.0.1:{port}"
        assert exporter(handle).export(finished("x")) is SpanExportResult.SUCCESS
        os.kill(handle.pid, signal.SIGKILL)
        handle.stop()
    handle = GatewayHandle.start(tmp_path, GatewaySettings(grpc_port=None), tmp_path / "log")
    assert handle.grpc_url is None
    assert len(psutil.Process(handle.pid).net_connections("tcp")) >= 1
    listening = [c for c in psutil.Process(handle.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    handle.stop()
    assert len(listening) == 1


def test_a_grpc_port_in_use_is_one_line_and_code_two(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "lightning_core.gateway", "--home", str(tmp_path)]
        command += ["--settings", json.dumps({"grpc_port": port})]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert f"port {port}" in line and "gateway.grpc_port" in line
    assert not (tmp_path / "services" / "gateway.json").exists()


def test_stopping_answers_what_is_under_way(tmp_path: Path) -> None:
    handle = GatewayHandle.start(tmp_path, GatewaySettings(), tmp_path / "log")
    body = encode_request(
        {}, [SpanData("work", 1, 2, os.urandom(16).hex(), os.urandom(8).hex(), attributes={"x": "y" * 500_000})]
    )
    acknowledged: list[int] = []
    endings: set[grpc.StatusCode] = set()
    address = str(handle.grpc_url).removeprefix("http://")

    def load() -> None:
        with grpc.insecure_channel(address) as channel:
            export = channel.unary_unary(f"/{TRACES}/Export")
            try:
                for _ in range(10_000):
                    export(body, timeout=20)
                    acknowledged.append(1)
            except grpc.RpcError as error:
                endings.add(error.code())

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 20:
        time.sleep(0.01)
    process = handle._process
    handle.stop()
    for thread in threads:
        thread.join()
    assert process is not None and process.returncode == 0
    assert endings <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}  # what exporters try again
    assert len(list(spool.read(tmp_path / "spool", 0))) >= len(acknowledged)
