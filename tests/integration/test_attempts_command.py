"""Attempts of commands: real processes, a stand-in for the server (tests/standin_server.py)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_core import names
from lightning_core.agents.attempt import AttemptResult, AttemptSpec
from lightning_core.agents.runner import Runner, new_attempt_id
from lightning_core.config import AgentSettings
from tests.integration.test_attempts_callable import gone
from tests.standin_server import Standin, standin

Command = Callable[..., AttemptResult]


@pytest.fixture(scope="module")
def server() -> Iterator[Standin]:
    with standin() as running:
        yield running


@pytest.fixture
def run(server: Standin, tmp_path: Path) -> Command:
    """Runs a command once; the task names a folder of the test's own."""

    def command(command: str | list[str], **settings: Any) -> AttemptResult:
        attempt_id = new_attempt_id()
        url = f"{server.url}/rollouts/r.{attempt_id}/attempts/{attempt_id}"
        task = {"n": 21, "folder": str(tmp_path)}
        spec = AttemptSpec("test", 0, "evaluate", f"r.{attempt_id}", attempt_id, "g", "t", task, url, "token", "secret")
        with Runner(AgentSettings(command=command, **settings), kill_grace_s=0.2, logs=tmp_path / "logs") as runner:
            return runner.run(spec)

    return command


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_command_gets_its_task_on_stdin_and_in_a_file(run: Command) -> None:
    code = (
        "import json, os, sys; here = json.load(sys.stdin); there = json.load(open(os.environ['LIGHTNING_TASK']));"
        "print('thinking'); print(json.dumps({'same': here == there, 'n': here['n']})); print()"
    )
    assert run(python(code)).output == {"same": True, "n": 21}


def test_the_documented_environment_is_all_there(run: Command, server: Standin) -> None:
    result = run(
        python("import json, os; print(json.dumps(dict(os.environ)))"),
        environment={"MINE": "1", "OTEL_SERVICE_NAME": "x"},
    )
    url = f"{server.url}/rollouts/{result.rollout_id}/attempts/{result.attempt_id}"
    seen = result.output
    expected = {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_BASE": f"{url}/v1",
        "OPENAI_API_KEY": "token",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20token",
        "OTEL_SERVICE_NAME": "x",
        "LIGHTNING_ROLLOUT_ID": result.rollout_id,
        "LIGHTNING_ATTEMPT_ID": result.attempt_id,
        "LIGHTNING_MODEL": "policy",
        "MINE": "1",
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert int(seen["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"]) > 1000
    assert f"lightning.attempt_id={result.attempt_id}" in seen["OTEL_RESOURCE_ATTRIBUTES"]
    assert "127.0.0.1" in seen["NO_PROXY"].split(",")


@pytest.mark.parametrize(
    ("printed", "output"),
    [
        ('{"a": [1]}', {"a": [1]}),
        ("plain words", "plain words"),
        ("{not json", "{not json"),
        ("NaN", "NaN"),
        ("7", 7),
        ("", None),
        ("\x00\x7f\u2028 odd", "\x00\x7f\u2028 odd"),
    ],
)
def test_the_last_line_is_the_output_as_json_where_it_is_json(run: Command, printed: str, output: Any) -> None:
    result = run(python(f"print('first'*0); print({printed!r})"))
    assert (result.status, result.output) == ("ok", output)


def test_bytes_that_are_no_text_do_no_harm(run: Command) -> None:
    result = run(python("import os; os.write(1, bytes(range(128, 256)))"))
    assert result.status == "ok"
    assert "\ufffd" in result.output


def test_an_exit_code_is_an_error_with_the_end_of_stderr(run: Command, server: Standin) -> None:
    result = run(python("import sys; print('x'*9999 + 'the reason', file=sys.stderr); sys.exit(4)"))
    assert (result.status, result.exit_code) == ("error", 4)
    assert "exit code 4" in (result.error or "")
    assert (result.error or "").endswith("the reason")
    assert len(result.error or "") < 3000
    (root,) = [s for s in server.named("rollout") if s.resource[names.ATTEMPT_ID] == result.attempt_id]
    assert root.raw["status"]["code"] == 2
    assert root.attributes[names.MODE] == "evaluate"


def test_an_output_of_100_mb_keeps_its_last_line(run: Command, tmp_path: Path) -> None:
    result = run("""bash -c "head -c 100000000 /dev/zero | tr '\\\\0' x; echo; echo 42" """)
    assert (result.status, result.output) == ("ok", 42)
    (kept,) = (tmp_path / "logs" / result.rollout_id).iterdir()
    assert kept.stat().st_size < 1_000_000


def test_an_attempt_that_prints_nothing_leaves_no_folder(run: Command, tmp_path: Path) -> None:
    assert run("true").status == "ok"
    assert not (tmp_path / "logs").exists()


def test_a_last_line_without_end_is_cut_and_said_so(run: Command) -> None:
    result = run(python("print('x' * 3_000_000)"))
    assert result.status == "ok"
    assert len(result.output) <= 1_000_000
    assert "too long" in (result.output_note or "")


def test_a_command_that_hangs_is_ended_with_all_it_started(run: Command, tmp_path: Path) -> None:
    code = (
        "import os, subprocess, time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "pids = [subprocess.Popen(['sleep', '600'], start_new_session=away).pid for away in (False, True)];"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(repr(pids + [os.getpid()])); time.sleep(600)"
    )
    result = run(python(code), timeout_s=5)
    assert result.status == "timeout"
    pids = json.loads((tmp_path / "pids").read_text())
    assert len(pids) == 3
    assert all(gone(pid) for pid in pids)


def test_a_command_that_heeds_sigterm_can_put_its_things_away(run: Command, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, pathlib;"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'tidy')!r}).write_text('yes'), sys.exit(0)));"
        "time.sleep(600)"
    )
    assert run(python(code), timeout_s=5).status == "timeout"
    assert (tmp_path / "tidy").read_text() == "yes"


def test_what_keeps_the_streams_open_in_the_background_is_ended(run: Command, tmp_path: Path) -> None:
    result = run(["bash", "-c", f"(setsid sleep 600 & echo $! > {tmp_path}/pid); echo done"])
    assert (result.status, result.output) == ("ok", "done")
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_working_directory_is_where_the_command_runs(run: Command, tmp_path: Path) -> None:
    assert run(["pwd"], working_directory=tmp_path).output == str(tmp_path)


def test_a_reward_given_while_the_server_was_busy_arrives_before_the_root_span(run: Command, server: Standin) -> None:
    # The agent's process can deliver nothing at all: its reward stays in the file beside its task.
    code = (
        "from lightning_core.client import emit, delivery;"
        "delivery._post_once = lambda *_: (delivery.DeliveryError('away'), None); delivery.time.sleep = lambda _: None;"
        "emit.emit_reward(0.5)"
    )
    result = run(python(code))
    assert result.status == "ok"
    mine = [s.name for s in server.spans if s.resource[names.ATTEMPT_ID] == result.attempt_id]
    assert mine == ["rollout.start", "reward", "rollout"]
