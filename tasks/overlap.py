"""Overlap (`async_level: 1`): the rollouts of the next epoch run while this one is trained.

They are sampled from the version that this epoch trains, so they are one version old when their own epoch trains on them.
No weights are swapped under them: the flow redeploys when both sides have come to their end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

from lightning_core.config import Settings
from lightning_core.epoch.plan import PlannedRollout, plan_training
from lightning_core.epoch.services import Services
from lightning_core.epoch.stage_keys import rollouts_key
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.policies.store import PolicyStore
from lightning_flows.tasks.collect import collect
from lightning_flows.tasks.preflight import training_tasks
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.redeploy import redeploy
from lightning_flows.tasks.rollout import close_runners


def begins_on(settings: Settings, epoch: EpochManifest, planned: list[PlannedRollout]) -> dict[str, str]:
    """Policy → version to serve when an epoch begins: what its rollouts sample from; where they ran ahead, what it trains."""
    ran = epoch.done("collect", rollouts_key(settings, epoch, planned)) is not None
    return epoch.versions if ran else epoch.sampled_from


@contextlib.contextmanager
def next_rollouts(settings: Settings, services: Services, epoch: EpochManifest) -> Iterator[None]:
    """Round training: the next epoch's rollouts are run and graded beside it, with `async_level: 1` where the run has one.

    Where a side fails, it is logged at once, and raised when the other has come to its end, which is kept; of two failures
    training's is raised. An interrupt ends both.
    """
    following = _opened(settings, epoch)
    if following is None:
        yield
        return
    planned = plan_training(settings, training_tasks(settings), following.epoch)
    if any(PolicyStore(settings.home, name).current() != version for name, version in epoch.versions.items()):
        redeploy(settings, services, epoch.versions)
    with ThreadPoolExecutor(1, thread_name_prefix="next-rollouts") as thread:
        # With this context: Prefect finds the flow run in it.
        rollouts = thread.submit(copy_context().run, _roll_out, settings, following, planned)
        try:
            with _kept_when_training_fails(following, rollouts):
                yield
            rollouts.result()
        except BaseException:
            while not rollouts.done():  # shards that were about to begin have runners of their own
                close_runners()
                time.sleep(0.1)
            raise


def _opened(settings: Settings, epoch: EpochManifest) -> EpochManifest | None:
    number = epoch.epoch + 1
    if settings.async_level == 0 or number >= settings.epochs:
        return None
    following = Lake(settings.home).open_ahead(settings.run, number, epoch.versions)
    if following is None:
        logger().info("the rollouts of epoch %d are not run ahead: it was begun after this one already", number)
    return following


def _roll_out(settings: Settings, following: EpochManifest, planned: list[PlannedRollout]) -> dict[str, Any]:
    try:
        return collect(settings, following, planned)
    except Exception as error:
        logger().error(
            "the rollouts of epoch %d failed: %s; the training beside them comes to its end", following.epoch, error
        )
        raise


@contextlib.contextmanager
def _kept_when_training_fails(following: EpochManifest, rollouts: Future[Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not rollouts.done():
            logger().error(
                "training failed: %s; the rollouts of epoch %d beside it come to their end", error, following.epoch
            )
        wait([rollouts])
        raise
