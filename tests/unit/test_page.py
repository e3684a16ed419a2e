"""The report of a run in the Prefect UI, as Markdown."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lightning_core.tracking.page import curve, page

SIGNALS: Any = {
    ("policy", "reward"): [(0, 0.25), (1, 0.75)],
    ("policy", "kl"): [(1, 0.01)],
    ("policy", "advantage_spread"): [(0, 0.9)],
    (None, "held_out_right"): [(0, 0.25), (1, 0.5), (2, 0.781)],
}
ROWS: Any = [
    {
        "epoch": -1,
        "mean_reward": None,
        "held_out_right": 0.25,
        "held_out_tasks": 64,
        "calls": None,
        "versions": {"policy": "v0000"},
    },
    {
        "epoch": 1,
        "mean_reward": 0.75,
        "reward_uniform": 0.875,
        "rollouts": 1920,
        "failed_rollouts": 0,
        "held_out_right": 0.781,
        "held_out_tasks": 64,
        "calls": 290,
        "trained_calls": 72,
        "response_tokens": 2900,
        "versions": {"policy": "v0002"},
    },
]


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0.8658400, 0.8658388], "▁▁"),
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([0.0, 0.5, 1.0], "▁▅█"),
        ([1.0, float("nan"), 0.0], "█ ▁"),
    ],
)
def test_a_curve_goes_from_the_least_to_the_greatest_value(values: list[float], bars: str) -> None:
    assert curve(values) == bars


def test_a_page_says_how_it_goes_and_has_a_line_a_signal_below_its_policy() -> None:
    text = page("mine", ROWS, SIGNALS, "[MLflow](http://x)")
    assert "[MLflow](http://x)" in text
    assert (
        "**epoch 1, mean reward 0.750 (0.875 if all tasks were drawn alike), 1,920 rollouts, 72 of 290 calls "
        "trained, 78.1% right on 64 held-out tasks, policy v0002**" in text
    )
    assert "`reward_uniform` is what it would be" in text
    assert "| reward | 0–1 | ▁█ | 0.25 | 0.75 | 0.25 | 0.75 |" in text
    assert "| held_out_right | before training–after epoch 1 | ▁▄█ | 0.25 | 0.781 | 0.25 | 0.781 |" in text
    headings = re.findall("^(## .*|\\| (?:reward|kl|advantage_spread|held_out_right) )", text, re.MULTILINE)
    assert headings == [
        "## All policies",
        "| held_out_right ",
        "## policy",
        "| reward ",
        "| kl ",
        "| advantage_spread ",
    ]


def test_a_run_that_draws_all_tasks_alike_has_one_reward_and_no_word_on_it() -> None:
    row = ROWS[1] | {"reward_uniform": None, "failed_rollouts": 3}
    text = page("mine", [row], SIGNALS, None)
    assert "mean reward 0.750, 1,920 rollouts (3 failed)" in text
    assert "alike" not in text


def test_an_epoch_of_which_there_are_the_rollouts_alone_is_not_the_newest() -> None:
    ahead = ROWS[1] | {"epoch": 2, "held_out_right": None, "trained_calls": 0, "versions": {}}
    assert "**epoch 1, mean reward 0.750" in page("mine", [*ROWS, ahead], SIGNALS, None)


def test_a_reward_of_nothing_is_said_too() -> None:
    row = ROWS[1] | {"mean_reward": 0.0, "reward_uniform": 0.0}
    assert "mean reward 0.000 (0.000 if all tasks were drawn alike)" in page("mine", [row], SIGNALS, None)


def test_a_run_without_anything_yet_has_a_page() -> None:
    assert page("mine", [], {}, None) == "# Run mine\n"
    assert "before training, 25.0% right on 64 held-out tasks" in page("mine", ROWS[:1], {}, None)
