"""Stages of an epoch: done once for what they read, and again when any of it changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_core.events import Stage as StageEvent
from lightning_core.events import shown

if TYPE_CHECKING:  # a command that only names the stages has no need of Arrow and DuckDB
    from lightning_core.epoch.epoch import Epoch

logger = logging.getLogger(__name__)
_finishing = threading.Lock()  # policies may be trained side by side

# In their order. A manifest has one `train <policy>` a policy, and no `deploy`: what is served is looked up.
Stage = Literal["rollouts", "rewards", "sequences", "train", "record"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def run_stage(
    epoch: Epoch, stage: str, key: str, work: Callable[[], dict[str, Any]], save: bool = True
) -> dict[str, Any]:
    """Return the output of a stage: from the manifest where it has run with this key, else of `work`, which is then
    kept there.

    Without `save` the manifest is not written: whoever calls saves it when all that `work` made is on the disk.
    """
    found = epoch.manifest.done(stage, key)
    if found is not None:
        logger.info("%s of run %s, %s is done already (key %s)", stage, epoch.run, epoch.named, key)
        return found
    logger.info("%s: %s", epoch.named, stage, extra=shown(StageEvent(epoch.mode, epoch.number, stage)))
    began = time.monotonic()
    output = work()
    took = time.monotonic() - began
    with _finishing:
        epoch.manifest.finish(stage, key, output, took)
        if save:
            epoch.save()
    done = StageEvent(epoch.mode, epoch.number, stage, took)
    logger.info("%s: %s took %.1f s", epoch.named, stage, took, extra=shown(done))
    return output


def redo_from(epoch: Epoch, stage: Stage, asked_by: str) -> None:
    """Forget that a stage and those after it were done, so that they are done again; once for each `asked_by`.

    From `rollouts` on the epoch begins anew behind what was received: its former rollouts stay in the lake, `outside` of it.
    """
    manifest = epoch.manifest
    if manifest.redone_for == asked_by:
        return
    again = STAGES[STAGES.index(stage) :]
    for name in [name for name in manifest.stages if name.partition(" ")[0] in again]:
        del manifest.stages[name]
    if stage == "rollouts":
        begin_anew(epoch)
        manifest.sampled = {}  # they come after their versions now
    manifest.redone_for = asked_by
    epoch.save()


def begin_anew(epoch: Epoch) -> None:
    """Leave behind the epoch's rollouts so far. The caller saves the manifest."""
    epoch.manifest.opened_offset, epoch.manifest.sealed_offset = epoch.lake.end(), None
    epoch.manifest.rolled_out_with, epoch.manifest.replaced = None, 0
