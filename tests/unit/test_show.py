"""What the Prefect UI shows of a run."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_core.config import Settings
from tasks import show


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([1.0], "▁"), ([2.0, 2.0], "▁▁"), ([0.0, 0.5, 1.0], "▁▅█"), ([1.0, float("nan"), 0.0], "█ ▁")],
)
def test_a_curve_goes_from_the_least_to_the_greatest_value(values: list[float], bars: str) -> None:
    assert show.curve(values) == bars


def test_the_report_has_a_line_a_signal_with_its_curve_and_a_link_to_the_record() -> None:
    text = show.report(
        "mine", {"policy reward": [(0, 0.25), (1, 0.75)], "policy kl": [(1, 0.01)]}, "[MLflow](http://x)"
    )
    assert "[MLflow](http://x)" in text
    assert "| policy reward | 0–1 | ▁█ | 0.25 | 0.75 | 0.25 | 0.75 |" in text
    assert "| policy kl | 1–1 | ▁ | 0.01 |" in text


def test_a_prefect_server_that_is_away_stops_nothing(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def away(**_: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(show, "create_table_artifact", away)
    monkeypatch.setattr(show, "create_markdown_artifact", away)
    monkeypatch.setattr(show, "_signals", lambda _: {})
    monkeypatch.setattr(show, "_dropped", lambda _: {0: {"other_policy": 2}})
    settings = Settings.model_validate({"agent": {"command": "true"}, "tasks": {"train": "t.jsonl"}})
    show.show_run(settings, [{"epoch": 0, "seconds": {"collect": 1.0}, "versions": {"policy": "v0001"}}], None)
    assert caplog.text.count("no artifact in the Prefect UI: gone") == 2
