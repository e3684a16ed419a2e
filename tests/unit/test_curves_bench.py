"""bench/curves.py: rows of a run's evaluations, and the page that is written of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import curves
from bench.runs import read_rows
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from tests.lake_maker import Attempt, derived, settings

REWARDS = [[0.0, 0.2, 0.0, 0.1], [0.4, 0.2, 0.6, 0.5], [1.0, 0.8, 0.9, 0.9]]


def row(epochs: int, reward: float, gained: list[float] | None, since_shown: list[float] | None) -> dict[str, Any]:
    common = {"epochs": epochs, "rollouts": 8 * epochs, "held_out_tasks": 4, "right": 0.0}
    return common | {"reward": reward, "interval": [0.0, 1.0], "gained": gained, "since_shown": since_shown}


@pytest.mark.slow
def test_every_evaluation_that_has_ended_is_a_row_with_what_was_gained_since_the_first(tmp_path: Path) -> None:
    spans = []
    for epoch, rewards in enumerate(REWARDS):
        for task, reward in enumerate(rewards):
            attempt = Attempt(rollout=f"{epoch}.{task}", attempt=f"{epoch}{task}", group=f"t{task}")
            attempt.root(epoch=epoch, mode="evaluate", task_id=f"t{task}")
            attempt.reward(reward)
            spans += attempt.rows
    lake, first = derived(tmp_path, spans, "evaluate")
    for number in (1, 2, 3):
        evaluated = EpochManifest(run="run", epoch=number, mode="evaluate", opened_offset=0, sealed_offset=1 << 40)
        derive(Epoch(settings(tmp_path), evaluated), "key")
        if number < 3:  # the last one is not finished
            evaluated.finish("record", "key", {}, 1.0)
        lake.manifests.put_epoch(evaluated)
        trained = EpochManifest(run="run", epoch=number - 1, opened_offset=0, planned=["a", "b"])
        lake.manifests.put_epoch(trained)
    first.finish("record", "key", {}, 1.0)
    lake.manifests.put_epoch(first)

    rows = curves.rows_of("calc_x", settings(tmp_path))

    assert [(r["epochs"], r["rollouts"], r["held_out_tasks"]) for r in rows] == [(0, 0, 4), (1, 2, 4), (2, 4, 4)]
    assert [r["reward"] for r in rows] == pytest.approx([0.075, 0.425, 0.9])
    assert rows[0]["gained"] is None and rows[1]["since_shown"] is None
    gained, low, high = rows[2]["gained"]
    assert gained == pytest.approx(0.825) and 0.6 < low < 0.825 < high < 1.05
    assert rows[2]["since_shown"][0] == pytest.approx(0.475)
    assert rows[2]["findings"] == ["error no_call", "warning few_held_out"], "these attempts call no model"
    assert all(r["interval"][0] < r["reward"] < r["interval"][1] for r in rows)


def test_a_task_goes_on_with_the_first_command_that_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []

    def stopped(arguments: list[str], *_: Any) -> bool:
        began.append(" ".join(arguments[3:5]).replace(str(curves.ROOT), ""))
        return False

    monkeypatch.setattr(curves, "run_for", stopped)
    manifests = Lake(tmp_path).manifests

    def evaluated(number: int, *stages: str) -> None:
        epoch = EpochManifest(run="spider", epoch=number, mode="evaluate", opened_offset=0)
        for stage in stages:
            epoch.finish(stage, "key", {}, 1.0)
        manifests.put_epoch(epoch)

    def next_one() -> str:
        assert curves.run("spider", tmp_path, math.inf) is False
        return began[-1]

    assert next_one() == "evaluate /examples/spider/settings.yaml"
    evaluated(0, "rollouts")
    assert next_one() == "evaluate /examples/spider/settings.yaml"
    evaluated(0, "rollouts", "record")
    assert next_one() == "train /examples/spider/demonstrate.yaml"
    for number in range(5):
        epoch = EpochManifest(run="spider", epoch=number, opened_offset=0)
        epoch.finish("record", "key", {}, 1.0)
        manifests.put_epoch(epoch)
        assert next_one() == "train /examples/spider/settings.yaml"
    evaluated(5, "record")
    assert curves.run("spider", tmp_path, math.inf) is True


def test_a_run_takes_the_place_of_the_one_before_it_and_of_no_other_tasks(tmp_path: Path) -> None:
    file = tmp_path / "results" / "curves.jsonl"
    curves.keep("spider", [{"task": "spider", "epochs": 0}], file)
    curves.keep("calc_x", [{"task": "calc_x", "epochs": 0}, {"task": "calc_x", "epochs": 1}], file)
    curves.keep("calc_x", [{"task": "calc_x", "epochs": 7}], file)
    assert read_rows(file) == [{"task": "spider", "epochs": 0}, {"task": "calc_x", "epochs": 7}]


@pytest.mark.parametrize(
    ("gained", "verdict"),
    [
        ([0.3, 0.1, 0.5], "it rose by 0.300."),
        ([-0.3, -0.5, -0.1], "it fell by 0.300."),
        ([0.1, -0.1, 0.3], "it did not change by more than chance (+0.100)."),
    ],
)
def test_the_verdict_is_a_plain_sentence(gained: list[float], verdict: str) -> None:
    assert (
        curves.verdict([row(0, 0.1, None, None), row(1, 0.2, gained, None)]) == f"Since the first evaluation {verdict}"
    )


def test_what_being_shown_did_is_told_apart_from_what_training_did(tmp_path: Path) -> None:
    rows = [
        row(0, 0.1, None, None),
        row(1, 0.3, [0.2, 0.1, 0.3], None),
        row(2, 0.45, [0.35, 0.2, 0.5], [0.15, -0.05, 0.35]),
    ]
    assert "With GRPO, since it was shown, it did not change by more than chance (+0.150)." in curves.verdict(rows)
    page = tmp_path / "tasks.md"
    marks = [f"<!-- curve: {task} -->\nold {task}\n<!-- end of the curve -->" for task in curves.TASKS]
    page.write_text("# Tasks\n\n" + "\n\n".join(marks) + "\n\nafter\n")
    curves.write_page([r | {"task": "spider"} for r in rows], page)
    text = page.read_text()
    assert "| 1 (shown) | 8 | 0.300 (0.00 to 1.00) | 0% | +0.200 (+0.100 to +0.300) |  |" in text
    assert "old calc_x" in text and "old spider" not in text and text.endswith("after\n")
    drawn = ElementTree.parse(tmp_path / "curve-spider.svg")
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 1


def test_the_page_in_the_tree_has_a_place_for_every_task() -> None:
    text = curves.PAGE.read_text()
    assert all(f"<!-- curve: {task} -->" in text for task in curves.TASKS)
