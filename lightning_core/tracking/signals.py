"""The signals of an epoch, and who gets them: any number of backends of one small interface.

What a signal is, is SQL: sql/views/signals.sql, which analysts ask too. A backend gets an epoch's signals once, after
the epoch or evaluation has come to its end. One of a user's own is a function that `tracking.backends` names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lightning_core.config import TrackingSettings
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.loading import load_callable
from lightning_core.tracking.prometheus import PrometheusFile
from lightning_core.user_code import describe


@dataclass(frozen=True)
class Signal:
    """One number of an epoch: `name` as in view signals, `policy` None where it is not one policy's."""

    policy: str | None
    name: str
    value: float


class Backend(Protocol):
    """What gets the signals of each epoch. Sent twice, the second time counts."""

    def send(self, epoch: EpochManifest, signals: list[Signal]) -> None: ...


def epoch_signals(lake: Lake, epoch: EpochManifest) -> list[Signal]:
    """Return the signals of an epoch or evaluation whose stages are in its manifest; rebuilds the catalog for them."""
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        rows = con.execute(
            "SELECT policy, signal, value FROM signals WHERE run = ? AND epoch = ? AND mode = ? ORDER BY ALL",
            [epoch.run, epoch.epoch, epoch.mode],
        )
        return [Signal(*row) for row in rows.fetchall()]


def backends(tracking: TrackingSettings, home: Path, say: Callable[[str], None]) -> list[Backend]:
    """Return the backends of `tracking.backends` that need no session of their own.

    MLflow's session is its run: mlflow_backend.
    """
    found: list[Backend] = []
    if "console" in tracking.backends:
        found.append(Console(say))
    if "prometheus" in tracking.backends:
        found.append(PrometheusFile(home))
    return found + [Function(reference) for reference in tracking.own_backends]


class Function:
    """A function of the user's, `(epoch, signals)`. One that fails ends no epoch."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._send = load_callable(reference, "tracking.backends")

    def send(self, epoch: EpochManifest, signals: list[Signal]) -> None:
        try:
            self._send(epoch, signals)
        except Exception as error:  # noqa: BLE001 - the user's code
            logging.getLogger(__name__).warning("%s: %s: %s", self._reference, epoch.named, describe(error))


class Console:
    """One line a policy, in the order of the view; what every epoch has anyway (seconds, tokens) is left to the tables."""

    _LEFT_OUT = ("tokens", "unique_tokens", "trained_tokens", "sequences")

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def send(self, epoch: EpochManifest, signals: list[Signal]) -> None:
        signals = [s for s in signals if s.name not in self._LEFT_OUT and not s.name.startswith("seconds/")]
        for policy in sorted({s.policy for s in signals}, key=lambda name: name or ""):
            shown = [s for s in signals if s.policy == policy]
            if shown:
                values = ", ".join(f"{s.name} {s.value:.4g}" for s in shown)
                self._say(f"{epoch.named}{f', {policy}' if policy else ''}: {values}")
