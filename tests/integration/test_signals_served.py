"""The server's `/metrics` has the signals of the runs of its home."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.services import gateway_running
from lightning_core.lake.manifest import EpochManifest
from lightning_core.tracking.prometheus import PrometheusFile
from lightning_core.tracking.signals import Signal
from tests.lake_maker import settings


def test_metrics_follow_the_newest_epoch_without_a_restart(tmp_path: Path) -> None:
    with gateway_running(Run(settings(tmp_path))) as server:

        def scraped() -> str:
            with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
                return str(reply.read().decode())

        assert "lightning_train_kl" not in scraped()
        for epoch, kl in enumerate([0.5, 0.25]):
            manifest = EpochManifest(run="a", epoch=epoch, opened_offset=0)
            PrometheusFile(tmp_path).send(manifest, [Signal("p", "kl", kl)])
            assert f'lightning_train_kl{{of="",policy="p",run="a"}} {kl}' in scraped()
