"""One attempt against the epoch: what it leaves, kills, stops or takes is its own failure, and its neighbours do not notice."""

from __future__ import annotations

import sys
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
from lightning_core.config import AgentSettings
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
                return AttemptSpec("test", 0, "train", rollout_id, attempt_id, "g", "t", content, url, "token")

            return run_rollout(runner, spec, retries, backoff_s=0.01)

        with (
            Runner(agent, kill_grace_s=0.2, logs=tmp_path / "logs") as runner,
            ThreadPoolExecutor(IN_FLIGHT) as threads,
        ):
            results = list(threads.map(rollout, range(IN_FLIGHT)))
        return Fight(results, attempts)

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
