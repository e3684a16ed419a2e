"""What a log record may carry for whoever shows a run: `logger.info(text, extra=shown(event))`.

A record without an event is a detail: it is in the log, and in the terminal with `--verbose` only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Worth:
    """A line that a person wants to see, once."""


@dataclass(frozen=True)
class At:
    """How far a stage is, in the record's text. `counted`: a Progress (tasks/progress.py) has it too."""

    counted: bool = False


@dataclass(frozen=True)
class Stage:
    """A stage of an epoch begins, or (`seconds`) has ended."""

    mode: str
    epoch: int
    name: str
    seconds: float | None = None


@dataclass(frozen=True)
class Rows:
    """An epoch or evaluation has been recorded: the run's rows, see lightning_core.epoch.report.epoch_rows."""

    rows: list[dict[str, Any]]


Event = Worth | At | Stage | Rows


def shown(event: Event | None = None) -> dict[str, Event]:
    """Return the `extra` of a log call; without an event, the line itself is what is worth showing."""
    return {"event": event or Worth()}


def when(epochs: int) -> str:
    """Return when an evaluation was made, by how many epochs had been trained: `before training`, `after epoch 4`."""
    return f"after epoch {epochs - 1}" if epochs else "before training"


def named(mode: str, epoch: int) -> str:
    """Return what an epoch or an evaluation is called wherever a person reads of it: `epoch 4`, `evaluation after epoch 3`."""
    return f"epoch {epoch}" if mode == "train" else f"evaluation {when(epoch)}"


def event_of(record: logging.LogRecord) -> Event | None:
    return getattr(record, "event", None)
