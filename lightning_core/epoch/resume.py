"""Rollouts of an epoch that was begun before: which are finished, whether they still count, what to serve for the others."""

from __future__ import annotations

import logging

from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.plan import PlannedRollout
from lightning_core.epoch.stage_keys import rollouts_key
from lightning_core.epoch.stages import begin_anew
from lightning_core.lake import sql

logger = logging.getLogger(__name__)


def finished(epoch: Epoch) -> set[str]:
    """Return the ids of rollouts that have a result, among the spans decoded so far."""
    with epoch.lake.connect(epoch.manifest.span_range) as con:
        asked = {"run": epoch.run, "epoch": epoch.number, "mode": epoch.mode}
        return {row[0] for row in con.execute(sql.text("plan/finished_rollouts"), asked).fetchall()}


def finished_with(epoch: Epoch, key: str) -> set[str]:
    """Return the ids of rollouts that are finished with this key. Those of another one are set aside: one epoch is one experiment."""
    found, manifest = finished(epoch), epoch.manifest
    if manifest.rolled_out_with not in (None, key):
        begin_anew(epoch)
        if found:
            logger.warning(
                "%s begins anew: its tasks, agent, sampling or versions are not those that %d finished rollouts ran "
                "with; these stay in the lake, outside of the epoch",
                epoch.named, len(found),
            )  # fmt: skip
        found = set()
    manifest.rolled_out_with = key
    epoch.save()
    return found


def starts_from(epoch: Epoch, planned: list[PlannedRollout]) -> dict[str, str]:
    """Return policy → version to serve when an epoch begins: what its rollouts sample from; where they ran ahead, what it trains."""
    ran = epoch.manifest.done("rollouts", rollouts_key(epoch, planned)) is not None
    return epoch.manifest.versions if ran else epoch.manifest.sampled_from
