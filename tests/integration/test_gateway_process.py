"""The server as a process: starting, being found, stopping, being killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lightning_core import names
from lightning_core.config import GatewaySettings
from lightning_core.gateway.handle import GatewayError, GatewayHandle
from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.spool import spool
from tests.gateway_rig import attributes, client, rig, spans_of

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[GatewayHandle]:
    made = GatewayHandle.start(tmp_path, GatewaySettings(), tmp_path / "gateway.log")
    yield made
    made.stop()


def test_a_running_server_is_found_and_only_its_starter_stops_it(tmp_path: Path, handle: GatewayHandle) -> None:
    found = GatewayHandle.find(tmp_path)
    assert found is not None and found.url == handle.url and found._process is None
    found.stop()
    assert GatewayHandle.find(tmp_path) is not None
    where = json.loads((tmp_path / "services" / "gateway.json").read_text())
    assert where == {
        "pid": handle.pid,
        "host": "127.0.0.1",
        "port": where["port"],
        "url": handle.url,
        "grpc_url": handle.grpc_url,
    }
    assert (tmp_path / "services" / "gateway.json").stat().st_mode & 0o777 == 0o600
    handle.stop()
    assert GatewayHandle.find(tmp_path) is None
    assert not (tmp_path / "services" / "gateway.json").exists()


def test_a_file_left_by_a_killed_server_finds_nothing(tmp_path: Path, handle: GatewayHandle) -> None:
    os.kill(handle.pid, signal.SIGKILL)
    handle.stop()
    assert (tmp_path / "services" / "gateway.json").exists()
    assert GatewayHandle.find(tmp_path) is None


def test_routes_tokens_and_spans_survive_a_restart(tmp_path: Path, handle: GatewayHandle) -> None:
    policy = {"upstream": "http://127.0.0.1:9", "model": "m", "version": "v0007"}
    handle.set_routes({"policies": {"policy": policy}})
    token = handle.mint("r", "a", "train")
    body = encode_request({}, [SpanData("x", 1, 2, "74" * 16, "73" * 8)])
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-protobuf"}
    httpx.post(handle.attempt_url("r", "a") + "/v1/traces", content=body, headers=headers).raise_for_status()
    offset = handle.seal()
    handle.stop()
    again = GatewayHandle.start(tmp_path, GatewaySettings(), tmp_path / "gateway.log")
    try:
        assert again.routes()["policies"]["policy"]["version"] == "v0007"
        assert again.health()["versions"] == {"policy": "v0007"}
        assert again.seal() == offset > 0
        httpx.post(again.attempt_url("r", "a") + "/v1/traces", content=body, headers=headers).raise_for_status()
    finally:
        again.stop()


def test_wrong_routes_are_refused_and_the_old_ones_stay(handle: GatewayHandle) -> None:
    with pytest.raises(GatewayError, match=r"policies\.policy\.version"):
        handle.set_routes({"policies": {"policy": {"upstream": "http://x", "model": "m"}}})
    assert handle.routes()["policies"] == {}


def test_a_rollout_is_claimed_once_in_a_collection(handle: GatewayHandle) -> None:
    assert not handle.claim("run/train/0", "first", "r.1")
    handle.begin_round("run/train/0", "first")
    assert [handle.claim("run/train/0", "first", "r.1") for _ in range(2)] == [True, False]
    handle.begin_round("run/train/0", "second")
    assert not handle.claim("run/train/0", "first", "r.2") and handle.claim("run/train/0", "second", "r.1")
    with pytest.raises(GatewayError, match="a JSON object with name, round is needed"):
        handle._ask("POST", "/admin/rounds", ["name"])


def test_administration_needs_the_secret_and_a_token_is_not_enough(handle: GatewayHandle) -> None:
    for path in ("/admin/seal", "/admin/rounds", "/admin/claims", "/admin/routes", "/admin/attempts/r/a"):
        method = "POST" if path in ("/admin/seal", "/admin/rounds", "/admin/claims") else "GET"
        for headers in ({}, {"Authorization": "Bearer " + handle.mint("r", "a", "train")}):
            assert httpx.request(method, handle.url + path, headers=headers).status_code == 401


def test_a_port_in_use_is_one_line_and_code_two(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "lightning_core.gateway", "--home", str(tmp_path)]
        command += ["--settings", json.dumps({"port": port})]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        with pytest.raises(GatewayError, match=rf"code 2:\n.*port {port} .*gateway\.port"):
            GatewayHandle.start(tmp_path, GatewaySettings(port=port), tmp_path / "gateway.log")
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert f"port {port}" in line and "gateway.port" in line


def test_a_second_server_for_a_home_is_refused_and_the_first_stays(tmp_path: Path, handle: GatewayHandle) -> None:
    with pytest.raises(GatewayError, match=rf"process {handle.pid} already writes"):
        GatewayHandle.start(tmp_path, GatewaySettings(), tmp_path / "second.log")
    assert GatewayHandle.find(tmp_path) is not None


def test_stopping_lets_a_stream_come_to_its_end(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        made.gate()
        stream = iter(client(made).chat.completions.create(model="policy", messages=MESSAGES, stream=True))
        next(stream)
        os.kill(made.handle.pid, signal.SIGTERM)
        made.open()
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"
        process = made.handle._process
        made.handle.stop()
        assert process is not None and process.returncode == 0
        assert names.UNTRAINABLE not in attributes(made.spans()[-1])


def test_a_server_killed_under_load_loses_no_acknowledged_span(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        acknowledged: list[str] = []

        def load(worker: int) -> None:
            token = made.handle.mint("r.1", f"w{worker}", "train")
            url = made.handle.attempt_url("r.1", f"w{worker}")
            with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=20) as http:
                try:
                    for i in range(100_000):
                        name = f"{worker}.{i}"
                        if i % 2:
                            message = [{"role": "user", "content": name}]
                            call = {"model": "policy", "messages": message, "stream": bool(i % 4 == 1)}
                            answer = http.post(url + "/v1/chat/completions", json=call)
                            whole = not call["stream"] or answer.text.endswith("data: [DONE]\n\n")
                        else:
                            body = encode_request({}, [SpanData(name, 1, 2, os.urandom(16).hex(), os.urandom(8).hex())])
                            headers = {"Content-Type": "application/x-protobuf"}
                            answer, whole = http.post(url + "/v1/traces", content=body, headers=headers), True
                        if answer.status_code == 200 and whole:
                            acknowledged.append(name)
                except httpx.HTTPError:
                    return

        threads = [threading.Thread(target=load, args=(w,)) for w in range(6)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 200 and any(thread.is_alive() for thread in threads):
            threads[0].join(0.02)
        os.kill(made.handle.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        made.handle.stop()
        stored = set()
        for _, _, record in spool.read(tmp_path / "spool", 0):
            for span in spans_of(record.body):
                messages = attributes(span).get(names.GEN_AI_INPUT_MESSAGES)
                stored.add(json.loads(messages)[0]["content"] if messages else span.name)
        assert len(acknowledged) >= 200 and set(acknowledged) <= stored
        # The same home serves again at once.
        made.start()
        assert made.handle.seal() >= spool.durable_end(tmp_path / "spool")


def test_the_server_is_light_to_start() -> None:
    code = (
        "import json, sys, lightning_core.gateway.main; print(json.dumps([m.partition('.')[0] for m in sys.modules]))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "vllm", "duckdb", "prefect", "mlflow", "transformers", "polars"} & set(json.loads(loaded))
