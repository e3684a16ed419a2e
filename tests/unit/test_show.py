"""Telling the Prefect UI of a run."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_flows.tasks import show


def test_the_table_has_every_column_in_its_first_row_and_says_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's UI shows the columns of the first row."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(show, "create_table_artifact", made.update)
    monkeypatch.setattr(show, "create_markdown_artifact", lambda **_: None)
    monkeypatch.setattr(show, "run_signals", lambda *_: {("policy", "dropped/no_spread"): [(0, 2.0)]})
    figures: dict[str, Any] = dict.fromkeys(
        ("reward_uniform", "rollouts", "failed_rollouts", "calls", "trained_calls"), 0
    )
    figures |= {"reward_uniform": None, "response_tokens": 0}
    before = figures | {"epoch": -1, "mean_reward": None, "seconds": {"evaluate": 9.0}, "versions": {"policy": "v0000"}}
    first = figures | {
        "epoch": 0,
        "mean_reward": 0.5,
        "seconds": {"rollouts": 1.0, "evaluate": 2.0},
        "versions": {"policy": "v0001"},
    }
    again = first | {"epoch": 1, "reward_uniform": 0.25, "seconds": {"rollouts": 3.04}}
    settings = Settings.model_validate({"agent": {"command": "true"}, "tasks": {"train": "t.jsonl"}})
    show.show_run(Run(settings), [before, first], None)
    assert [row["epoch"] for row in made["table"]] == ["before", 0]
    assert [row["rollouts s"] for row in made["table"]] == [None, 1.0]
    assert [row["dropped"] for row in made["table"]] == ["", "no_spread 2"]
    assert made["description"] == f"Epochs of run {settings.run}"
    show.show_run(Run(settings), [before, first, again], "[MLflow](http://x)")
    assert [list(row)[-2:] for row in made["table"]] == [["rollouts s", "evaluate s"]] * 3
    assert "[MLflow](http://x)" in made["description"] and "if all tasks were drawn alike" in made["description"]


def test_a_prefect_server_that_is_away_stops_nothing(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def away(**_: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(show, "create_table_artifact", away)
    monkeypatch.setattr(show, "create_markdown_artifact", away)
    monkeypatch.setattr(show, "run_signals", lambda *_: {("policy", "dropped/other_policy"): [(0, 2.0)]})
    settings = Settings.model_validate({"agent": {"command": "true"}, "tasks": {"train": "t.jsonl"}})
    show.show_run(Run(settings), [{"epoch": 0, "seconds": {"rollouts": 1.0}, "versions": {"policy": "v0001"}}], None)
    assert caplog.text.count("no artifact in the Prefect UI: gone") == 2
