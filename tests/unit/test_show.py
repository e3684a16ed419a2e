"""Telling the Prefect UI of a run."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_core.config import Settings
from tasks import show


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
