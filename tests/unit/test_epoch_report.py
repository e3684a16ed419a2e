"""Figures of an epoch: what was trained on, and the rewards of fresh and of repeated tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.report import epoch_rows, policy_rows
from lightning_core.lake.lake import Lake
from tests.lake_maker import Attempt, derived, settings
from tests.view_rig import ask, put

REWARDS = {"fresh": [1.0, 0.0], "easy": [1.0, 1.0], "repeated": [0.5, 0.25]}

pytestmark = pytest.mark.slow  # many lakes


def epoch_of(home: Path) -> Any:
    """Three groups of two rollouts with one call each; `easy` has no spread, so four of six calls are in a sequence."""
    rows = []
    for group, rewards in REWARDS.items():
        for number, reward in enumerate(rewards):
            attempt = Attempt(f"{group}.{number}", group=group)
            attempt.root()
            attempt.call([1, 2], [3, 4])
            attempt.call([5], [6], policy="judge")
            attempt.reward(reward)
            rows += attempt.rows
    return derived(home, rows, versions={"policy": "v0000"})


def trained(home: Path) -> tuple[int, int, float | None]:
    """`trained_calls` of the report, of the policy, and as a signal."""
    (row,), (policy,) = epoch_rows(Run(settings(home))), policy_rows(Run(settings(home)))
    lake_signals = ask(Lake(home), "SELECT value FROM signals WHERE signal = 'kept'")
    return row["trained_calls"], policy["trained_calls"], lake_signals[0]["value"] if lake_signals else None


def test_trained_are_calls_that_a_version_was_trained_on_and_no_more(tmp_path: Path) -> None:
    lake, epoch = epoch_of(tmp_path)
    assert trained(tmp_path) == (0, 0, None), "there was no training yet"
    digest = epoch.tables["sequences"].digest

    def after(**output: Any) -> tuple[int, int, float | None]:
        epoch.finish("train policy", "key", output, 1.0)
        put(lake, epoch)
        return trained(tmp_path)

    assert after(version="v0001", metrics={}, sequences=digest) == (4, 4, 4.0)
    assert after(version="v0001", metrics={}) == (4, 4, 4.0), "as versions before it was kept"
    assert after(version="v0001", metrics={}, sequences="others") == (0, 0, None), "the epoch was graded again since"
    assert after(version="v0000", metrics={}, skipped="not its turn") == (0, 0, None)
    (row,) = epoch_rows(Run(settings(tmp_path)))
    assert (row["calls"], row["response_tokens"]) == (6, 12), "another model's calls are none of the policy"


def test_a_call_of_several_choices_was_trained_on_once(tmp_path: Path) -> None:
    rows = []
    for number in range(2):
        attempt = Attempt(f"r.{number}")
        attempt.root()
        attempt.call([1, 2], [3, 4, 5, 6], choice_lengths=[2, 2])
        attempt.reward(float(number))
        rows += attempt.rows
    lake, epoch = derived(tmp_path, rows, versions={"policy": "v0000"})
    epoch.finish("train policy", "key", {"version": "v0001", "metrics": {}}, 1.0)
    put(lake, epoch)
    assert ask(lake, "SELECT sum(len(call_ids)) AS n FROM sequences") == [{"n": 4}], "two choices of each call"
    assert trained(tmp_path) == (2, 2, 2.0)


def test_rewards_of_fresh_and_of_repeated_tasks_are_apart(tmp_path: Path) -> None:
    lake, epoch = epoch_of(tmp_path)
    (row,) = epoch_rows(Run(settings(tmp_path)))
    assert (row["reward_fresh"], row["reward_repeated"]) == (None, None), "this run repeats no task"

    def parts(repeated: list[str]) -> tuple[float | None, float | None]:
        epoch.repeated = repeated
        put(lake, epoch)
        (row,) = epoch_rows(Run(settings(tmp_path)))
        found = row["reward_fresh"], row["reward_repeated"]
        (view,) = ask(lake, "SELECT reward_fresh, reward_repeated FROM epochs")
        assert (view["reward_fresh"], view["reward_repeated"]) == found
        signals = ask(
            lake, "SELECT signal, value FROM signals WHERE signal LIKE 'reward_fresh' OR signal = 'reward_repeated'"
        )
        assert {s["signal"]: s["value"] for s in signals} == {
            name: value
            for name, value in zip(("reward_fresh", "reward_repeated"), found, strict=True)
            if value is not None
        }
        return found

    assert row["mean_reward"] == pytest.approx(0.625)
    assert parts(["repeated"]) == (0.75, 0.375)
    assert ask(lake, "SELECT DISTINCT task_id FROM rollouts WHERE repeated") == [{"task_id": "repeated"}]
    assert parts([]) == (0.625, None), "none in the first epoch"
    assert parts(list(REWARDS)) == (None, 0.625)


def test_the_seconds_of_an_evaluation_are_the_same_before_and_after_it_was_recorded(tmp_path: Path) -> None:
    """The table in Prefect's UI is written while the evaluation is recorded."""
    lake, _ = epoch_of(tmp_path)
    evaluation = lake.open_epoch(settings(tmp_path).run, 1, "evaluate", {"policy": "v0000"})
    evaluation.finish("rollouts", "key", {}, 2.0)
    put(lake, evaluation)

    def seconds() -> Any:
        return epoch_rows(Run(settings(tmp_path)))[0]["seconds"]["evaluate"]

    assert seconds() == 2.0
    evaluation.finish("record", "key", {}, 5.0)
    put(lake, evaluation)
    assert seconds() == 2.0
