"""What is said where an epoch finds no state of the optimizer before it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lightning_core.training.state import load_state


def test_a_policy_first_trained_in_a_later_epoch_begins_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert load_state(tmp_path / "optimizer", 3) == (None, {"step": 0})
    assert [(r.levelname, "epoch 3" in r.message) for r in caplog.records] == [("INFO", True)]


def test_a_state_that_was_there_and_is_gone_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "epoch-0004").mkdir()
    assert load_state(tmp_path, 3) == (None, {"step": 0})
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "no optimizer state before epoch 3; AdamW starts afresh" in caplog.text
