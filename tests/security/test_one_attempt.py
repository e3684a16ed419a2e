"""One attempt against the epoch: what it leaves, kills, stops or takes is its own failure, and its neighbours do not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_core import names
from lightning_core.agents.attempt import AttemptResult, AttemptSpec
from lightning_core.agents.runner import Runner, run_rollout
from lightning_core.config import AgentSettings, Settings
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.plan import Task, plan_training
from lightning_core.lake.manifest import EpochManifest
from lightning_core.process import fork_server, linux
from lightning_flows.tasks.shard import rollout_shard
from tests.gateway_rig import attributes, rig
from tests.integration.test_attempts_callable import spec_for
from tests.standin_server import Standin, standin

AGENTS = Path(__file__).parent / "agents_that_attack.py"
IN_FLIGHT, ATTACKER = 8, 3


@pytest.fixture(scope="module")
def server() -> Iterator[Standin]:
    with standin() as running:
        yield running


@dataclass
class Fight:
    """What became of eight rollouts, of which one attacked, and how many attempts of each there were."""

    results: list[AttemptResult]
    attempts: list[int]
    orphan_outlived: bool = False

    @property
    def attacker(self) -> AttemptResult:
        return self.results[ATTACKER]

    def only_the_attacker_failed(self) -> bool:
        others = [result for number, result in enumerate(self.results) if number != ATTACKER]
        return all((result.status, result.output) == ("ok", "honest") for result in others)


@pytest.fixture
def fight(server: Standin, tmp_path: Path) -> Callable[..., Fight]:
    """Has eight attempts in flight at once; when all are, one attacks."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()

    def run(way: str, task: dict[str, Any] | None = None, retries: int = 2, **settings: Any) -> Fight:
        attempts = [0] * IN_FLIGHT
        agent = AgentSettings(callable=f"{AGENTS}:attack", preload=[], **{"timeout_s": 60} | settings)

        def rollout(number: int) -> AttemptResult:
            def spec(attempt_id: str) -> AttemptSpec:
                attempts[number] += 1
                rollout_id = f"test.{tmp_path.name}.{number}"
                url = f"{server.url}/rollouts/{rollout_id}/attempts/{attempt_id}"
                content = {"meeting": str(meeting), "of": IN_FLIGHT, "logs": str(tmp_path / "logs"), **(task or {})}
                content |= {"way": way} if number == ATTACKER else {}
                return AttemptSpec(
                    "test", 0, "train", rollout_id, attempt_id, "g", "t", content, url, "token", "secret"
                )

            return run_rollout(runner, spec, retries, backoff_s=0.01)

        def attacker() -> AttemptResult:
            result = rollout(ATTACKER)
            orphan = (task or {}).get("orphan")
            fight.orphan_outlived = orphan is not None and not gone(int(Path(orphan).read_text()))
            return result

        fight = Fight([], attempts)
        with (
            Runner(agent, kill_grace_s=0.2, logs=tmp_path / "logs") as runner,
            ThreadPoolExecutor(IN_FLIGHT) as threads,
        ):
            begun = [
                threads.submit(attacker) if number == ATTACKER else threads.submit(rollout, number)
                for number in range(IN_FLIGHT)
            ]
            fight.results = [one.result() for one in begun]
        return fight

    return run


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


UNREADABLE = ["garbage", "bad UTF-8", "a list", "deep nesting", "folder", "link", "fifo"]


@pytest.mark.parametrize("what", [*UNREADABLE, "an error that is a list", "a note that is a number", "a long number"])
def test_a_result_that_cannot_be_read_is_the_error_of_its_attempt(
    fight: Callable[..., Fight], server: Standin, what: str
) -> None:
    done = fight("leave", {"name": "result.json", "what": what})
    assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
    assert done.attacker.status == "error" and "result.json" in str(done.attacker.error)
    root = [s for s in server.named("rollout") if s.resource[names.ATTEMPT_ID] == done.attacker.attempt_id]
    assert [span.attributes[names.STATUS] for span in root] == ["error"]


@pytest.mark.parametrize("what", ["garbage", "folder", "link", "fifo", "many lines"])
def test_undelivered_spans_that_cannot_be_read_are_the_error_of_their_attempt(
    fight: Callable[..., Fight], what: str
) -> None:
    done = fight("leave", {"name": "undelivered-spans", "what": what})
    assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
    assert done.attacker.status == "error" and "undelivered-spans" in str(done.attacker.error)


@pytest.mark.parametrize("way", ["leave_a_deep_folder", "occupy_the_logs"])
def test_what_an_attempt_puts_in_the_way_of_clearing_up_harms_nobody(fight: Callable[..., Fight], way: str) -> None:
    done = fight(way)
    assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
    assert done.attacker.status == "ok"


def test_another_folder_in_the_place_of_an_attempts_own_is_not_read(fight: Callable[..., Fight]) -> None:
    done = fight("replace_the_folder")
    assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
    assert done.attacker.status == "error" and "before the callable returned" in str(done.attacker.error)


@pytest.mark.parametrize(("opened", "closed"), [(200_000, 0), (400, 400)])
def test_a_last_line_that_nests_deeply_is_a_text(
    server: Standin, opened: int, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "sk-not-to-be-seen")
    code = f"print('[' * {opened} + ']' * {closed})"
    with Runner(AgentSettings(command=[sys.executable, "-c", code], pass_environment=["MY_SECRET"])) as runner:
        result = runner.run(spec_for(server))
    assert result.status == "ok" and result.output == "[" * opened + "]" * closed


def test_300_mb_left_behind_are_not_read(fight: Callable[..., Fight]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_mb()
    for name in ("result.json", "undelivered-spans"):
        done = fight("leave", {"name": name, "what": "300 MB"})
        assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
        assert done.attacker.status == "error" and f"{name} is larger" in str(done.attacker.error)
    assert _peak_mb() - before < 100


def _peak_mb() -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def test_an_attempt_that_kills_its_parent_has_ended_itself(fight: Callable[..., Fight]) -> None:
    done = fight("kill_parent")
    assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
    assert (done.attacker.status, done.attacker.exit_code) == ("error", -signal.SIGKILL)


@pytest.mark.parametrize("way", ["orphan", "orphan_and_kill_parent"])
def test_a_process_that_nothing_marks_does_not_outlive_its_attempt(
    fight: Callable[..., Fight], tmp_path: Path, way: str
) -> None:
    done = fight(way, {"orphan": str(tmp_path / "pid")})
    assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
    assert done.attacker.status == ("ok" if way == "orphan" else "error")
    assert not done.orphan_outlived


def test_an_attempt_whose_parent_it_stopped_is_timed_out_and_its_neighbours_stay(fight: Callable[..., Fight]) -> None:
    done = fight("stop_parent", timeout_s=4)
    assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
    assert done.attacker.status == "timeout"


def test_a_fork_server_that_an_attempt_stopped_goes_on(server: Standin, tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    task = {"meeting": str(tmp_path / "meeting"), "of": 1}
    agent = AgentSettings(callable=f"{AGENTS}:attack", preload=[], timeout_s=30)
    with Runner(agent) as runner, ThreadPoolExecutor(IN_FLIGHT) as threads:
        assert runner.run(spec_for(server, task | {"way": "stop_fork_server"})).status == "ok"
        others = [threads.submit(runner.run, spec_for(server, task | {"of": IN_FLIGHT + 1})) for _ in range(IN_FLIGHT)]
        assert [other.result().output for other in others] == ["honest"] * IN_FLIGHT


@pytest.mark.parametrize("retries", [0, 2])
def test_who_ends_the_fork_server_twice_is_found_and_the_others_are_repeated_once(
    fight: Callable[..., Fight], retries: int
) -> None:
    done = fight("kill_fork_server", {"first_ones_stay": True}, retries=retries, timeout_s=30)
    assert done.only_the_attacker_failed() and done.attempts == [2] * IN_FLIGHT
    assert done.attacker.status == "error" and "ran alone" in str(done.attacker.error)


def test_an_attempt_holds_nothing_that_speaks_for_others(fight: Callable[..., Fight]) -> None:
    done = fight("show_descriptors")
    assert done.attacker.output == [0, 1, 2]


LIMITS = [
    ("start_many", {"processes": 40}, "agent.limits.processes"),
    ("start_threads", {"processes": 40}, "agent.limits.processes"),
    ("take_memory", {"memory_mb": 300}, "MemoryError"),
    ("open_files_of_its_own", {"open_files": 100}, "Too many open files"),
    ("write_a_large_file", {"file_mb": 10}, "File too large"),
    ("print_without_end", {"output_mb": 20}, "agent.limits.output_mb"),
]


@pytest.mark.parametrize(("way", "limits", "message"), LIMITS, ids=[way for way, *_ in LIMITS])
def test_an_attempt_that_takes_more_than_it_may_fails_by_itself(
    fight: Callable[..., Fight], way: str, limits: dict[str, int], message: str
) -> None:
    done = fight(way, limits=limits)
    assert done.only_the_attacker_failed() and done.attempts == [1] * IN_FLIGHT
    assert done.attacker.status == "error" and message in str(done.attacker.error)


def test_processes_that_have_ended_do_not_count(fight: Callable[..., Fight]) -> None:
    assert fight("end_many_one_after_another", limits={"processes": 40}).attacker.output == "honest"


def test_an_agent_that_ends_amid_the_count_of_its_processes_is_not_ended_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it leaves is reaped after it only, so at that moment all of them are there to be counted."""
    agent = subprocess.Popen(["sleep", "600"])
    ended = os.pidfd_open(agent.pid)

    def count() -> int:
        agent.kill()
        os.waitid(os.P_PIDFD, ended, os.WEXITED | os.WNOWAIT)
        return 41

    monkeypatch.setattr(linux, "threads_below", count)
    assert fork_server._watch(agent.pid, 40, ended) is None
    os.close(ended)
    agent.wait()


def test_an_attempt_has_the_limits_of_the_settings_and_goes_first_where_memory_ends(
    fight: Callable[..., Fight],
) -> None:
    limits = {"memory_mb": 1000, "open_files": 200, "file_mb": 10}
    memory, files, size, score = fight("show_limits", limits=limits).attacker.output
    assert [memory[1], files[1], size[1]] == [1000 << 20, 200, 10 << 20]
    assert memory[0] == memory[1] and files[0] <= 200 and score >= 500


def test_a_command_has_them_too_and_by_default_half_of_the_memory(server: Standin) -> None:
    with Runner(AgentSettings(command=["bash", "-c", "ulimit -H -d; ulimit -H -n"])) as runner:
        result = runner.run(spec_for(server))
    half = psutil.virtual_memory().total // 2048
    assert (result.status, result.output) == ("ok", 4096)
    with Runner(AgentSettings(command=["bash", "-c", "ulimit -H -d"])) as runner:
        assert abs(runner.run(spec_for(server)).output - half) < 2048


def test_a_command_that_kills_its_parent_has_ended_itself(server: Standin) -> None:
    with Runner(AgentSettings(command=["bash", "-c", "kill -9 $PPID; sleep 600"])) as runner:
        result = run_rollout(runner, lambda attempt_id: spec_for(server, attempt_id=attempt_id), 0)
    assert (result.status, result.exit_code) == ("error", -signal.SIGKILL)


def test_a_shard_in_which_every_other_attempt_attacks_ends_with_a_result_of_each(tmp_path: Path) -> None:
    """Behind the real gateway, as a flow runs it."""
    ways: list[dict[str, Any]] = [{"way": way} for way in ("kill_parent", "replace_the_folder", "kill_fork_server")]
    ways += [{"way": "leave", "name": "result.json", "what": what} for what in ("a list", "folder", "fifo")]
    ways += [{"way": "leave", "name": "undelivered-spans", "what": what} for what in ("garbage", "folder")]
    (tmp_path / "meeting").mkdir()
    tasks = [
        Task(f"t{n}", task | {"meeting": str(tmp_path / "meeting"), "of": 1})
        for n, task in enumerate([one for way in ways for one in (way, {})])
    ]
    settings = Settings.model_validate(
        {
            "home": tmp_path,
            "run": "fight",
            "agent": {"callable": f"{AGENTS}:attack", "preload": [], "timeout_s": 30},
            "tasks": {"train": "(none)"},
            "rollout": {"tasks_per_epoch": len(tasks), "group_size": 2, "concurrency": 4},
        }
    )
    epoch = Epoch(settings, EpochManifest(run="fight", epoch=0, opened_offset=0))
    planned = plan_training(epoch, tasks, 0)
    with rig(tmp_path) as gateway:
        shard = rollout_shard.fn(epoch, gateway.handle, planned, number=1, of=1, total=len(planned))
        roots = [span for span in gateway.spans() if span.name == "rollout"]
    assert shard["statuses"] == {"ok": 2 * len(ways), "error": 2 * len(ways)}
    outcomes = Counter(str(attributes(root)[names.STATUS]) for root in roots)
    assert (outcomes["ok"], outcomes["error"]) == (2 * len(ways), 2 * len(ways))
