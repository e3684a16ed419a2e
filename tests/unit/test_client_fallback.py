"""Spans that could not be sent: they wait in a file, and whoever comes next sends them."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_core import client, names
from lightning_core.client import fallback
from lightning_core.otlp.spans import SpanData, encode_request
from tests.nobody import nobody
from tests.standin_server import Standin
from tests.unit.test_client_emit import server as server  # the fixture


def test_spans_wait_in_a_file_while_the_server_is_away_and_keep_no_credentials(server: Standin, tmp_path: Path) -> None:
    server.fail = [(503, {}) for _ in range(5)]
    client.emit_reward(1)
    client.emit_reward(2)
    waiting = tmp_path / fallback.FILE_NAME
    assert server.spans == []
    assert len(waiting.read_bytes().splitlines()) == 2
    assert b"to,ken" not in waiting.read_bytes()
    assert waiting.stat().st_mode & 0o077 == 0
    client.emit_reward(3)
    assert sorted(span.attributes[names.REWARD] for span in server.spans) == [1.0, 2.0, 3.0]
    assert waiting.read_bytes() == b""


def test_a_refused_request_is_said_and_does_not_wait(
    server: Standin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.fail = [(400, {})]
    client.emit_reward(1)
    assert "was refused and is lost" in caplog.text
    assert not (tmp_path / fallback.FILE_NAME).exists()


def test_one_refused_request_does_not_hold_up_the_others(server: Standin, tmp_path: Path) -> None:
    path = tmp_path / "waiting"
    for number in range(3):
        fallback.keep(path, encode_request({}, [SpanData(str(number), 1, 2, "a" * 32, "b" * 16)]))
    server.fail = [(400, {})]
    with pytest.raises(client.DeliveryError, match="1 kept requests were dropped"):
        fallback.deliver(path, server.url, {})
    assert [span.name for span in server.spans] == ["1", "2"]
    assert path.read_bytes() == b""


def test_a_write_that_failed_or_was_killed_half_way_takes_no_other_request_with_it(
    server: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "waiting"

    def request(name: str) -> bytes:
        return encode_request({}, [SpanData(name, 1, 2, "a" * 32, "b" * 16)])

    fallback.keep(path, request("one"))
    with monkeypatch.context() as patch:
        patch.setattr(fallback.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            fallback.keep(path, request("two"))
    with path.open("ab") as file:
        file.write(base64.b64encode(request("torn"))[:20])  # killed
    fallback.keep(path, request("three"))
    with path.open("ab") as file:
        file.write(base64.b64encode(request("torn"))[:20])
    assert fallback.deliver(path, server.url, {}) == 2
    assert [span.name for span in server.spans] == ["one", "three"]


def test_a_kill_while_waiting_requests_are_rewritten_loses_none(
    server: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "waiting"
    for number in range(3):
        fallback.keep(path, encode_request({}, [SpanData(str(number), 1, 2, "a" * 32, "b" * 16)]))
    server.fail = [(200, {}), (503, {})]
    with monkeypatch.context() as patch:
        patch.setattr(fallback.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fallback.deliver(path, server.url, {})
    assert len(path.read_bytes().splitlines()) == 3
    assert fallback.deliver(path, server.url, {}) == 3


def test_waiting_spans_are_sent_when_the_process_ends(server: Standin, tmp_path: Path) -> None:
    code = (
        "from lightning_core.client import delivery, emit; delivery.time.sleep = lambda _: None;"
        "delivery._post_once, real = (lambda *_: (delivery.DeliveryError('away'), None)), delivery._post_once;"
        "emit.emit_reward(7); delivery._post_once = real"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), timeout=60)
    assert [span.attributes[names.REWARD] for span in server.spans] == [7.0]


@pytest.fixture
def alone(server: Standin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An agent that runs by itself: an endpoint, and no attempt. Returns where its spans wait."""
    monkeypatch.delenv(names.ENV_TASK)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return fallback.fallback_path(f"{server.url}/rollouts/r1/attempts/a1")


def killed_before_it_could_send(value: int) -> None:
    code = (
        "import os; from lightning_core.client import delivery, emit; delivery.time.sleep = lambda _: None;"
        "delivery._post_once = lambda *_: (delivery.DeliveryError('away'), None);"
        f"emit.emit_reward({value}); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=60, check=False)
    assert done.returncode == 9


def test_the_next_process_sends_what_the_last_one_left(server: Standin, alone: Path) -> None:
    killed_before_it_could_send(7)
    assert server.spans == []
    assert len(alone.read_bytes().splitlines()) == 1
    client.emit_reward(8)
    assert [span.attributes[names.REWARD] for span in server.spans] == [8.0, 7.0]
    assert alone.read_bytes() == b""


def test_an_agent_that_gave_up_its_rights_to_the_attempts_folder_gives_rewards_all_the_same(
    server: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = tmp_path / "runner" / "attempt"
    attempt.mkdir(parents=True)
    monkeypatch.setenv(names.ENV_TASK, str(attempt / "task.json"))
    attempt.parent.chmod(0)
    try:
        with nobody():
            client.emit_reward(1)
    finally:
        attempt.parent.chmod(0o700)
    assert [span.attributes[names.REWARD] for span in server.spans] == [1.0]


def test_a_command_sends_what_waits_and_says_where_the_server_does_not_take_it(server: Standin, alone: Path) -> None:
    killed_before_it_could_send(7)
    command = [sys.executable, "-m", "lightning_core.client"]
    server.fail = [(503, {"Retry-After": "0"})] * 3
    away = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (away.returncode, server.spans) == (1, [])
    assert "answered 503" in away.stderr
    assert len(alone.read_bytes().splitlines()) == 1
    sent = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert sent.stdout == "sent 1 requests\n"
    assert [span.attributes[names.REWARD] for span in server.spans] == [7.0]


def test_a_file_of_another_user_is_neither_sent_nor_written(
    server: Standin, alone: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone.write_bytes(b"Cg==\n")
    monkeypatch.setattr("os.getuid", lambda: alone.stat().st_uid + 1)
    monkeypatch.setattr(fallback, "fallback_path", lambda _: alone)
    client.emit_reward(1)
    server.fail = [(503, {})] * 9
    client.emit_reward(2)
    assert [span.attributes[names.REWARD] for span in server.spans] == [1.0]
    assert alone.read_bytes() == b"Cg==\n"
    assert "belongs to another user" in caplog.text
    assert "a span is lost" in caplog.text
