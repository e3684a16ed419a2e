"""The pool that attempts are forked from: shared by threads, killed, hung, closed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from lightning_core.agents import child
from lightning_core.agents.attempt import AttemptSpec
from lightning_core.agents.runner import Runner, run_rollout
from lightning_core.config import AgentSettings
from lightning_core.process.forks import ForkServerError
from tests.integration.test_attempts_callable import AGENTS, gone, spec_for
from tests.integration.test_attempts_callable import server as server  # the fixture
from tests.standin_server import Standin


def pids_in(file: Path) -> list[int]:
    """What an agent writes there of itself and its children, once it has; the suite's time limit ends this where it does not."""
    while not file.exists() or not file.read_text():
        time.sleep(0.02)
    found: list[int] = json.loads(file.read_text())
    return found


def test_many_threads_share_a_pool(server: Standin) -> None:
    with Runner(AgentSettings(callable=f"{AGENTS}:fine", preload=[])) as runner, ThreadPoolExecutor(32) as threads:
        results = list(threads.map(lambda n: runner.run(spec_for(server, {"n": n})), range(96)))
    assert [result.output["twice"] for result in results] == [2 * n for n in range(96)]


def test_a_zygote_that_dies_costs_its_attempts_and_is_replaced(server: Standin, tmp_path: Path) -> None:
    settings = AgentSettings(callable=f"{AGENTS}:leaves_children", preload=[])
    with Runner(settings) as runner:
        runner._pool.start()
        first = runner._pool._server
        assert first is not None
        hanging = AgentSettings(callable=f"{AGENTS}:hangs_with_children", preload=[])
        with Runner(hanging) as other, ThreadPoolExecutor(1) as threads:
            running = threads.submit(other.run, spec_for(server, {"pids": str(tmp_path / "pids")}))
            pids_in(tmp_path / "pids")
            assert other._pool._server is not None
            os.kill(other._pool._server.pid, 9)
            result = running.result()
            assert result.status == "infrastructure"
            assert "has gone" in (result.error or "")
        assert all(gone(pid) for pid in pids_in(tmp_path / "pids"))
        os.kill(first.pid, 9)
        while first.alive:
            time.sleep(0.01)
        assert runner.run(spec_for(server, {"pids": str(tmp_path / "more")})).status == "ok"


def test_an_attempt_whose_keeper_is_killed_has_ended_and_nothing_of_it_is_left(server: Standin, tmp_path: Path) -> None:
    settings = AgentSettings(callable=f"{AGENTS}:hangs_with_children", preload=[])
    with Runner(settings) as runner, ThreadPoolExecutor(1) as threads:
        running = threads.submit(runner.run, spec_for(server, {"pids": str(tmp_path / "pids")}))
        pids = pids_in(tmp_path / "pids")
        attempt = psutil.Process(os.getsid(pids[0]))
        os.kill(attempt.ppid(), signal.SIGKILL)
        result = running.result()
        assert (result.status, result.exit_code) == ("error", -signal.SIGKILL)
        assert all(gone(pid) for pid in pids)
        assert runner._pool._server is not None and runner._pool._server.alive


def test_closing_ends_what_still_runs(server: Standin, tmp_path: Path) -> None:
    settings = AgentSettings(callable=f"{AGENTS}:hangs_with_children", preload=[])
    with ThreadPoolExecutor(1) as threads:
        with Runner(settings) as runner:
            running = threads.submit(runner.run, spec_for(server, {"pids": str(tmp_path / "pids")}))
            pids_in(tmp_path / "pids")
        assert running.result().status == "infrastructure"
    assert all(gone(pid) for pid in pids_in(tmp_path / "pids"))


def test_a_closed_runner_starts_nothing_and_can_be_closed_again(server: Standin, tmp_path: Path) -> None:
    runner = Runner(AgentSettings(callable=f"{AGENTS}:lasting_thread", preload=[]))
    runner._pool.start()
    runner.close()
    runner.close()
    specs: list[AttemptSpec] = []

    def make(attempt_id: str) -> AttemptSpec:
        specs.append(spec_for(server, {"file": str(tmp_path / "ran")}, attempt_id))
        return specs[-1]

    result = run_rollout(runner, make, retries=2)
    assert (result.status, len(specs)) == ("infrastructure", 1)
    assert "was closed" in (result.error or "")
    assert not (tmp_path / "ran").exists()


def test_who_waits_for_another_try_ends_with_the_runner(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, specs = threading.Event(), []
    monkeypatch.setattr("lightning_core.agents.runner.log.warning", lambda *_: waits.set())  # of the wait

    def make(attempt_id: str) -> AttemptSpec:
        specs.append(spec_for(server, attempt_id=attempt_id))
        return specs[-1]

    settings = AgentSettings(callable=f"{AGENTS}:fine", preload=[])
    runner = Runner(settings, infrastructure_errors=lambda _: "2 calls failed upstream (503)")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_rollout, runner, make, retries=1, backoff_s=20)
        waits.wait()
        runner.close()
        assert running.result().status == "infrastructure"
    assert len(specs) == 1


def test_a_runner_is_closed_while_its_modules_are_still_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_core.process.forks.END_S", 0.2)
    (tmp_path / "hangs.py").write_text(f"import time\nopen({str(tmp_path / 'begun')!r}, 'w')\ntime.sleep(1000)\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    settings = AgentSettings(callable=f"{AGENTS}:fine", preload=["hangs"], environment=environment)
    with Runner(settings) as runner, ThreadPoolExecutor(1) as threads:
        starting = threads.submit(runner._pool.start)
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        began = time.monotonic()
        runner.close()
        assert time.monotonic() - began < 30
        with pytest.raises(ForkServerError):
            starting.result()


def test_a_zygote_that_hangs_is_ended_and_its_attempt_made_again(
    server: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_core.process.forks.HUNG_S", 0.2)
    monkeypatch.setattr("lightning_core.process.forks.END_S", 0.2)
    monkeypatch.setattr("lightning_core.process.forks.ForkServer.wake", lambda _: None)  # what hangs does not heed it
    settings = AgentSettings(callable=f"{AGENTS}:fine", preload=[], timeout_s=3)
    with Runner(settings, kill_grace_s=0.1) as runner:
        runner._pool.start()
        assert runner._pool._server is not None
        os.kill(runner._pool._server.pid, signal.SIGSTOP)
        result = run_rollout(runner, lambda attempt_id: spec_for(server, attempt_id=attempt_id), 2, backoff_s=0.01)
    assert result.status == "ok"


def test_nothing_outlives_a_flow_that_is_killed(server: Standin, tmp_path: Path) -> None:
    spec = spec_for(server, {"pids": str(tmp_path / "pids")})
    code = (
        "import sys; from lightning_core.agents.attempt import AttemptSpec; from lightning_core.agents.runner import Runner;"
        "from lightning_core.config import AgentSettings;"
        f"runner = Runner(AgentSettings(callable={f'{AGENTS}:hangs_with_children'!r}, preload=[])); runner._pool.start();"
        "print(runner._pool._server.pid, flush=True);"
        f"runner.run(AttemptSpec(*{dataclasses.astuple(spec)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as flow:
        assert flow.stdout is not None
        server_pid = int(flow.stdout.readline())
        left = [server_pid, *pids_in(tmp_path / "pids")]
        flow.kill()
        while not all(gone(pid) for pid in left):  # the suite's time limit ends this where they stay
            time.sleep(0.02)


def test_default_modules_that_are_missing_are_skipped_and_ones_asked_for_are_not() -> None:
    assert child.preload(["no_such_module", "json"], optional=True) is None
    assert "no_such_module" in (child.preload(["json", "no_such_module"], optional=False) or "")
