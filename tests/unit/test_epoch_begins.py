"""Where an epoch begins in the spool: behind all that came before it, also what nobody has decoded yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.stages import begin_anew
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.otlp.spans import encode_request
from lightning_core.spool import spool
from tests.lake_maker import settings
from tests.spool_maker import record, span, store


def receive(home: Path) -> None:
    store(home, [record(encode_request({}, [span()]))])


def of_other_versions(lake: Lake, epoch: EpochManifest) -> EpochManifest:
    return lake.open_epoch("run", 1, "evaluate", {"policy": "v0001"})


def of_another_key(lake: Lake, epoch: EpochManifest) -> EpochManifest:
    begin_anew(Epoch(settings(lake.root.parent), epoch))
    return epoch


@pytest.mark.parametrize("anew", [of_other_versions, of_another_key])
def test_rollouts_of_a_killed_try_that_nobody_decoded_are_not_the_next_ones(
    tmp_path: Path, anew: Callable[[Lake, EpochManifest], EpochManifest]
) -> None:
    lake = Lake(tmp_path)
    receive(tmp_path)
    lake.ingest()
    killed = lake.open_epoch("run", 1, "evaluate", {"policy": "v0000"})
    receive(tmp_path)  # and the flow is killed: these wait in the spool
    assert (
        anew(lake, killed).opened_offset
        == spool.durable_end(tmp_path / "spool")
        > lake.manifests.spans().decoded_offset
    )
    lake.ingest()
    assert lake.end() == lake.manifests.spans().decoded_offset
