"""Signals for Prometheus: a file a run in `home/signals`, which the gateway's `/metrics` includes.

Training ends with its process, so there is nothing to scrape then; the gateway stays, and reads the files when it is
asked. `signal{of}` of view signals: `dropped/no_spread` becomes `lightning_train_dropped{of="no_spread"}`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lightning_core.files import write_atomic

if TYPE_CHECKING:
    from lightning_core.lake.manifest import EpochManifest
    from lightning_core.tracking.signals import Signal

logger = logging.getLogger(__name__)

_FOLDER = "signals"
_LABELS = ("run", "policy", "of")


class PrometheusFile:
    """The newest epoch's (or evaluation's) signals of each run, for `SignalFiles` to show."""

    def __init__(self, home: Path) -> None:
        self._folder = home / _FOLDER

    def send(self, epoch: EpochManifest, signals: list[Signal]) -> None:
        rows = [{"policy": s.policy or "", "signal": s.name, "value": s.value} for s in signals]
        rows.append({"policy": "", "signal": "epoch", "value": epoch.epoch})
        content = {"run": epoch.run, "mode": epoch.mode, "signals": rows}
        write_atomic(self._folder / f"{epoch.run}.{epoch.mode}.json", json.dumps(content).encode())


class SignalFiles(Collector):
    """Gauges of the files as they are at that moment: `lightning_<mode>_<signal>{run, policy, of}`."""

    def __init__(self, home: Path) -> None:
        self._folder = home / _FOLDER

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                kept = json.loads(path.read_bytes())
            except (OSError, ValueError) as error:
                logger.warning("%s: left out of /metrics: %s", path, error)
                continue
            for row in kept["signals"]:
                signal, _, of = row["signal"].partition("/")
                name = re.sub(r"\W", "_", f"lightning_{kept['mode']}_{signal}")
                if name not in families:
                    about = f"{signal} of the newest {kept['mode']} epoch"
                    families[name] = GaugeMetricFamily(name, about, labels=_LABELS)
                families[name].add_metric([kept["run"], row["policy"], of], row["value"])
        yield from families.values()
