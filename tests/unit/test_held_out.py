"""The result of an evaluation."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.held_out import held_out, interval, pass_at
from tests.lake_maker import Attempt, derived, settings


def test_pass_at_k_is_the_share_of_tasks_that_one_of_k_draws_solves() -> None:
    counts = [(5, 0), (5, 2), (5, 5)]
    for k in range(1, 6):
        drawn = []
        for n, right in counts:
            draws = list(itertools.combinations([True] * right + [False] * (n - right), k))
            drawn.append(sum(any(draw) for draw in draws) / len(draws))
        assert pass_at(counts, k) == pytest.approx(sum(drawn) / len(drawn))


def test_the_interval_of_single_rollouts_is_wilsons() -> None:
    low, high = interval([(1, 1)] * 30 + [(1, 0)] * 70)
    assert (low, high) == pytest.approx((0.2189, 0.3958), abs=1e-3)


def test_rollouts_of_a_task_that_always_agree_are_as_good_as_one() -> None:
    assert interval([(8, 8)] * 30 + [(8, 0)] * 70) == pytest.approx(interval([(1, 1)] * 30 + [(1, 0)] * 70))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(1)
    covered = 0
    for _ in range(400):
        chances = [draw.betavariate(1, 2) for _ in range(60)]  # mean 1/3
        low, high = interval([(4, sum(draw.random() < chance for _ in range(4))) for chance in chances])
        covered += low <= 1 / 3 <= high
    assert 0.90 <= covered / 400 <= 0.99


@pytest.mark.parametrize("counts", [[], [(1, 0)], [(1, 1)], [(4, 4)] * 3, [(4, 0)] * 3])
def test_the_interval_holds_the_share_and_stays_between_0_and_1(counts: list[tuple[int, int]]) -> None:
    low, high = interval(counts)
    share = sum(c for _, c in counts) / max(sum(n for n, _ in counts), 1)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_the_interval_of_rewards_between_0_and_1_covers_their_mean_at_least_so_often() -> None:
    draw = random.Random(2)
    covered = 0
    for _ in range(400):
        low, high = interval([(1, draw.betavariate(0.3, 0.9)) for _ in range(30)])  # mean 1/4
        covered += low <= 1 / 4 <= high
    assert covered / 400 >= 0.95


def test_an_evaluation_is_summed_up_by_task(tmp_path: Path) -> None:
    rows = []
    for task, rollout, value in (("a", 0, 1.0), ("a", 1, 0.0), ("b", 0, 1.0), ("b", 1, 1.0)):
        attempt = Attempt(rollout=f"{task}.{rollout}", group=task)
        attempt.reward(value)
        attempt.root(mode="evaluate")
        rows += attempt.rows
    for place, row in enumerate(rows):
        row["record_offset"] = place
    _, epoch = derived(tmp_path, rows, mode="evaluate")
    found = held_out(Epoch(settings(tmp_path), epoch))
    assert (found.tasks, found.rollouts, found.right, found.reward) == (2, 4, 0.75, 0.75)
    assert found.pass_at == {1: 0.75, 2: 1.0}
