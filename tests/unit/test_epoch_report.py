"""Figures of an epoch: what was trained on, and the reward if all tasks were drawn alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.report import epoch_rows, policy_rows
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import Draw
from tests.lake_maker import Attempt, derived, settings
from tests.view_rig import ask, put

REWARDS = {"fresh": [1.0, 0.0], "easy": [1.0, 1.0], "hard": [0.5, 0.25]}

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


def test_the_reward_if_all_tasks_were_drawn_alike_counts_a_task_less_that_is_drawn_more(tmp_path: Path) -> None:
    lake, epoch = epoch_of(tmp_path)

    def uniform() -> float | None:
        (row,) = epoch_rows(Run(settings(tmp_path)))
        assert row["mean_reward"] == pytest.approx(0.625)
        (view,) = ask(lake, "SELECT reward_uniform FROM epochs")
        signals = ask(lake, "SELECT value FROM signals WHERE signal = 'reward_uniform'")
        found: float | None = row["reward_uniform"]
        assert view["reward_uniform"] == pytest.approx(found) if found else view["reward_uniform"] is None
        assert [s["value"] for s in signals] == ([pytest.approx(found)] if found else [])
        return found

    assert uniform() is None, "no task is drawn more often than another"
    epoch.draw = Draw(key="k", weights={"easy": 1.0, "fresh": 1.0, "hard": 2.0})
    put(lake, epoch)
    assert uniform() == pytest.approx((0.5 + 1 + 0.375 / 2) / 2.5)
    weights = "SELECT DISTINCT task_id, weight FROM rollouts ORDER BY task_id"
    assert [row["weight"] for row in ask(lake, weights)] == [1.0, 1.0, 2.0]
