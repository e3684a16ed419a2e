"""bench/learning.py: what is run, what is counted, and the figures, table and plot that come of rows."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench import learning, learning_page
from lightning_core.config import TrainingSettings
from lightning_core.epoch.derive_inputs import check_estimators
from lightning_core.training.schedule import learning_rate
from tests.tiny_model import make_tiny_llama

CALCULATOR = Path(__file__).parents[2] / "examples/calculator"


def rows(arm: str, shares: list[list[float]]) -> list[dict[str, Any]]:
    """Rows of an arm: for each seed its shares by epoch."""
    return [
        {"key": "k", "arm": arm, "seed": seed, "epochs": epochs, "rollouts": 100 * epochs, "right": share, "tasks": 64}
        for seed, own in enumerate(shares)
        for epochs, share in enumerate(own)
    ]


ROWS = rows("ours", [[0.2, 0.6, 0.9], [0.4, 0.6, 0.9]]) + rows("transitions", [[0.2, 0.4, 0.7], [0.4, 0.4, 0.7]])


@pytest.mark.slow  # it imports transformers
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_stock_is_trained_at_the_rates_that_ours_is(schedule: str) -> None:
    import torch
    from transformers import get_scheduler

    from bench.learning_trl import scheduled

    training = TrainingSettings.model_validate({"learning_rate": 1.0, "lr_schedule": schedule})
    names = scheduled(training, 48)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(
        names["lr_scheduler_type"], optimizer, 0, 48, scheduler_specific_kwargs=names.get("lr_scheduler_kwargs")
    )
    for at in range(48):
        assert theirs.get_last_lr()[0] == pytest.approx(learning_rate(training, at, 48, at)), at
        optimizer.step()
        theirs.step()


def test_the_ancestors_scheme_is_settings_alone(tmp_path: Path) -> None:
    ours, _ = learning.settings_of("ours", 1, tmp_path)
    theirs, _ = learning.settings_of("transitions", 1, tmp_path)
    check_estimators(theirs.policies)
    changed = {"advantages", "merge", "min_spread"}
    for a, b in zip(ours.policies, theirs.policies, strict=True):
        assert a.model_dump(exclude=changed) == b.model_dump(exclude=changed)
    assert (theirs.reward.assign, theirs.reward.gamma, theirs.policies[0].merge) == ("discounted", 1.0, "per_call")
    assert theirs.policies[0].min_spread == 0
    same = {"home", "policies", "reward"}
    assert ours.model_dump(exclude=same) == theirs.model_dump(exclude=same)
    assert ours.home != theirs.home


def test_rows_of_other_settings_are_another_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = learning.settings_key()
    text = learning.SETTINGS.read_text()
    for name, value in (("learning_rate", "9.0e-5"), ("epochs", "99"), ("min_spread", "0.25")):
        changed = tmp_path / "settings.yaml"
        other = re.sub(rf"(?m)^( *{name}:) \S+", rf"\1 {value}", text)
        assert other != text
        changed.write_text(other)
        with monkeypatch.context() as patch:
            patch.setattr(learning, "SETTINGS", changed)
            assert learning.settings_key() != key
    assert learning.settings_key() == key


def test_what_has_its_last_row_is_not_run_again(tmp_path: Path) -> None:
    assert learning.missing(ROWS, [0, 1, 2], 2) == [
        (0, "stock"), (1, "stock"), (2, "ours"), (2, "transitions"), (2, "stock"),
    ]  # fmt: skip
    file = tmp_path / "results/learning.jsonl"
    learning.add_rows(ROWS, file)
    learning.add_rows(rows("stock", [[0.1]]), file)
    learning.add_rows([], file)
    assert learning.read_rows(file) == [*ROWS, *rows("stock", [[0.1]])]


def test_a_run_that_was_begun_again_leaves_no_row_of_the_one_that_was_lost(tmp_path: Path) -> None:
    file = tmp_path / "learning.jsonl"
    learning.add_rows(ROWS, file)
    again = rows("ours", [[0.2, 0.5]])
    learning.add_rows(again, file)
    assert [r for r in learning.read_rows(file) if (r["arm"], r["seed"]) == ("ours", 0)] == again
    assert len(learning.read_rows(file)) == len(ROWS) - 1


def test_the_figures_are_of_the_means_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    learning.print_figures(learning.curves(ROWS))
    lines = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert lines["learning_final"] | {"ratio": 0} == lines["learning_final"] | {
        "ratio": 0,
        "value": 0.9,
        "baseline": 0.7,
    }
    assert lines["learning_final"]["n"] == 2 and lines["learning_final"]["below_another_at"] == []
    # 0.7 lies a third of the way from 0.6 after 100 rollouts to 0.9 after 200.
    match = lines["learning_rollouts_to_match"]
    assert (match["value"], match["baseline"], match["ratio"]) == (133.3, 200, 1.5)


def test_an_epoch_in_which_ours_is_behind_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    behind = rows("ours", [[0.3, 0.1, 0.9]]) + rows("transitions", [[0.3, 0.4, 0.7]])
    learning.print_figures(learning.curves(behind))
    assert json.loads(capsys.readouterr().out.splitlines()[0])["below_another_at"] == [1]


def test_a_level_that_is_not_reached_has_no_rollouts() -> None:
    assert learning.rollouts_to(0.95, learning.curves(ROWS)["ours"]) is None
    assert learning.rollouts_to(0.1, learning.curves(ROWS)["ours"]) == 0


def test_the_page_has_the_table_and_the_plot_and_says_what_is_missing(tmp_path: Path) -> None:
    page = tmp_path / "learning.md"
    page.write_text(f"# Learning\n\n{learning_page.BEGIN}\nold\n{learning_page.END}\n\nafter\n")
    learning_page.write_page(learning.curves(ROWS), [(1, "stock")], tmp_path)
    text = page.read_text()
    assert "| 2 | 200 | 90.0% (90% to 90%; 2) | 70.0% (70% to 70%; 2) |" in text
    assert "Not run yet: stock with seed 1." in text and "(learning.svg)" in text and "old" not in text
    assert text.endswith("after\n")
    drawn = ElementTree.parse(tmp_path / "learning.svg")
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 2


def test_the_page_in_the_tree_has_a_place_for_the_table() -> None:
    text = (learning_page.DOCS / "learning.md").read_text()
    assert learning_page.BEGIN in text and learning_page.END in text


@pytest.mark.extra
def test_the_stock_arm_trains_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import learning_trl
    from lightning_core.settings_file import load_settings

    monkeypatch.syspath_prepend(str(CALCULATOR))
    model = make_tiny_llama(tmp_path / "tiny")
    training = {"steps_per_epoch": 1, "learning_rate": 1e-3, "lr_schedule": "linear"}
    changes = {
        "policies": [{"name": "policy", "model": str(model), "training": training}],
        "rollout": {"tasks_per_epoch": 2, "group_size": 2},
        "epochs": 2,
        "evaluation": {"limit": 3, "success_reward": 0.75},
    }
    settings = load_settings(CALCULATOR / "settings.yaml", changes)
    monkeypatch.setattr(learning_trl, "load_settings", lambda *_: settings)
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["learning_trl", "--seed", "0", "--folder", str(folder)])
    learning_trl.main()
    done = learning.read_rows(folder / "evaluations.jsonl")
    assert [(row["epochs"], row["rollouts"], row["tasks"]) for row in done] == [(0, 0, 3), (1, 4, 3), (2, 8, 3)]
    assert sorted(p.name for p in (folder / "checkpoints").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    state = json.loads((folder / "checkpoints/checkpoint-2/trainer_state.json").read_text())
    assert [line["learning_rate"] for line in state["log_history"] if "loss" in line] == [1e-3, 5e-4]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in done[:2]))
    learning_trl.main()
    assert len(learning.read_rows(folder / "evaluations.jsonl")) == 3
    task = {"answer": 6, "question": "?"}
    assert [learning_trl.reward(task, reply) for reply in ("calc(2*3)", "so calc(2*3)", "calc(2+3)", "6")] == [
        1.0,
        0.8,
        0.1,
        0.0,
    ]
