"""The page of a run: Markdown with plots."""

from __future__ import annotations

import base64
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from lightning_core.tracking.page import curve, page, plots

SIGNALS: Any = {
    ("policy", "reward"): [(0, 0.25), (1, 0.75)],
    ("policy", "kl"): [(1, 0.01)],
    ("policy", "advantage_spread"): [(0, 0.9)],
    (None, "held_out_right"): [(0, 0.25), (1, 0.5), (2, 0.781)],
}
ROWS: Any = [
    {"epoch": -1, "mean_reward": None, "held_out_right": 0.25, "held_out_tasks": 64, "calls": None, "versions": {}},
    {
        "epoch": 1,
        "mean_reward": 0.75,
        "reward_fresh": 0.875,
        "reward_repeated": 0.5,
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
DROPPED = {0: {"other_policy": 2}, 1: {"other_policy": 1, "no_spread": 3}}


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
    text = page("mine", ROWS, DROPPED, SIGNALS, "[MLflow](http://x)")
    assert "[MLflow](http://x)" in text
    assert (
        "**epoch 1, mean reward 0.750 (0.875 of fresh tasks, 0.500 of repeated ones), 1,920 rollouts, 72 of 290 calls "
        "trained, 78.1% right on 64 held-out tasks, policy v0002**" in text
    )
    assert "compare fresh tasks with fresh tasks" in text
    assert "| reward | 0–1 | ▁█ | 0.25 | 0.75 | 0.25 | 0.75 |" in text
    headings = re.findall("^(## .*|\\| (?:reward|kl|advantage_spread|held_out_right) )", text, re.MULTILINE)
    assert headings == [
        "## All policies",
        "| held_out_right ",
        "## policy",
        "| reward ",
        "| kl ",
        "| advantage_spread ",
    ]


def test_its_plots_are_a_picture_that_needs_no_other_file_and_say_what_they_show() -> None:
    text = page("mine", ROWS, DROPPED, SIGNALS, None)
    found = re.search(r"!\[plots of run mine\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", text)
    assert found is not None
    svg = base64.b64decode(found[1]).decode()
    texts = {element.text for element in ElementTree.fromstring(svg).iter() if element.text}
    assert {
        "reward",
        "reward, fresh tasks",
        "reward, repeated tasks",
        "held_out_right",
        "policy kl",
        "no_spread",
        "other_policy",
        "tokens a response",
    } <= texts
    assert svg == plots(ROWS, DROPPED, SIGNALS), "the same run, the same bytes"


def test_a_run_that_repeats_no_task_has_one_reward_and_no_word_on_it() -> None:
    row = ROWS[1] | {"reward_fresh": None, "reward_repeated": None, "failed_rollouts": 3}
    text = page("mine", [row], DROPPED, SIGNALS, None)
    assert "mean reward 0.750, 1,920 rollouts (3 failed)" in text
    assert "fresh" not in text and "fresh tasks" not in plots([row], DROPPED, SIGNALS)


def test_a_run_without_anything_yet_has_a_page() -> None:
    assert page("mine", [], {}, {}, None) == "# Run mine\n"
    assert "before training, 25.0% right on 64 held-out tasks" in page("mine", ROWS[:1], {}, {}, None)
