"""Stages of an epoch: done once for what they read, and again when any of it changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from lightning_core.events import Stage as StageEvent
from lightning_core.events import shown

if TYPE_CHECKING:  # a command that only names the stages has no need of Arrow and DuckDB
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.manifest import EpochManifest

logger = logging.getLogger(__name__)
_finishing = threading.Lock()  # policies may be trained side by side

Stage = Literal["rollouts", "rewards", "triplets", "train", "record"]
# In their order, with the names they have in a manifest; there is one `train` a policy.
STAGES: dict[Stage, str] = {
    "rollouts": "collect",
    "rewards": "grade",
    "triplets": "derive",
    "train": "train ",
    "record": "record",
}


def run_stage(
    lake: Lake, epoch: EpochManifest, stage: str, key: str, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Output of a stage: from the manifest where it has run with this key, else of `work`, then kept there."""
    found = epoch.done(stage, key)
    if found is not None:
        logger.info("%s of %s epoch %d is done already (key %s)", stage, epoch.run, epoch.epoch, key)
        return found
    name = title(stage)
    logger.info("%s %d: %s", epoch.mode, epoch.epoch, name, extra=shown(StageEvent(epoch.mode, epoch.epoch, name)))
    began = time.monotonic()
    output = work()
    took = time.monotonic() - began
    with _finishing:
        epoch.finish(stage, key, output, took)
        lake.manifests.put_epoch(epoch)
    done = StageEvent(epoch.mode, epoch.epoch, name, took)
    logger.info("%s %d: %s took %.1f s", epoch.mode, epoch.epoch, name, took, extra=shown(done))
    return output


def title(stage: str) -> str:
    """A manifest's stage as `--from` and the docs call it; training with its policy: `train policy`."""
    return next((title for title, name in STAGES.items() if name == stage), stage)


def redo_from(lake: Lake, epoch: EpochManifest, stage: Stage, asked_by: str) -> None:
    """Forget that a stage and those after it were done, so that they are done again; once for each `asked_by`.

    From `rollouts` on the epoch begins anew behind what was received: its former rollouts stay in the lake, `outside` of it.
    """
    if epoch.redone_for == asked_by:
        return
    names = list(STAGES.values())
    again = tuple(names[names.index(STAGES[stage]) :])
    for name in [name for name in epoch.stages if name.startswith(again)]:
        del epoch.stages[name]
    if stage == "rollouts":
        begin_anew(lake, epoch)
        epoch.sampled = {}  # they come after their versions now
    epoch.redone_for = asked_by
    lake.manifests.put_epoch(epoch)


def begin_anew(lake: Lake, epoch: EpochManifest) -> None:
    """Leave behind the epoch's rollouts so far. The caller saves the manifest."""
    epoch.opened_offset, epoch.sealed_offset = lake.end(), None
    epoch.rolled_out_with = None
