"""The rollouts of the next epoch run while this one is written and recorded or, with `async_level: 1`, already while it is trained.

In the first case they are sampled from the version that this epoch made; in the second from the one that it trains, so they
are one version old when their own epoch trains on them. No weights are swapped under them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

from lightning_core.agents.shared import close_runners
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.plan import PlannedRollout, plan_training
from lightning_core.epoch.services import Services
from lightning_flows.tasks.deploy import deploy
from lightning_flows.tasks.preflight import training_tasks
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.rollouts import roll_out


@contextlib.contextmanager
def rolling_out_next(epoch: Epoch, services: Services, versions: dict[str, str]) -> Iterator[None]:
    """Run and grade the next epoch's rollouts, if there is one, beside what is done within; sampled from `versions`, policy → version.

    Where a side fails, it is logged at once, and raised when the other has ended, whose work is kept; of two failures
    this epoch's is raised. An interrupt ends both.
    """
    following = _opened(epoch, versions)
    if following is None:
        yield
        return
    planned = plan_training(epoch, training_tasks(epoch.settings.tasks), following.number)
    if any(store.current() != versions.get(name) for name, store in epoch.policies.items()):
        deploy(epoch, services, versions)
    with ThreadPoolExecutor(1, thread_name_prefix="next-rollouts") as thread:
        # With this context: Prefect finds the flow run in it.
        rollouts = thread.submit(copy_context().run, _roll_out, following, planned)
        try:
            with _kept_when_this_fails(epoch, rollouts):
                yield
            rollouts.result()
        except BaseException:
            while not rollouts.done():  # shards that were about to begin have runners of their own
                close_runners()
                time.sleep(0.1)
            raise


def _opened(epoch: Epoch, versions: dict[str, str]) -> Epoch | None:
    number = epoch.number + 1
    if number >= epoch.settings.epochs:
        return None
    following = epoch.lake.open_ahead(epoch.run, number, versions)
    if following is None:
        logger().info("the rollouts of epoch %d are not run ahead: it was begun after this one already", number)
        return None
    return epoch.at(following)


def _roll_out(following: Epoch, planned: list[PlannedRollout]) -> dict[str, Any]:
    try:
        return roll_out(following, planned)
    except Exception as error:
        logger().error(
            "the rollouts of epoch %d failed: %s; what runs beside them comes to its end", following.number, error
        )
        raise


@contextlib.contextmanager
def _kept_when_this_fails(epoch: Epoch, rollouts: Future[Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not rollouts.done():
            logger().error(
                "epoch %d failed: %s; the rollouts of epoch %d beside it come to their end",
                epoch.number, error, epoch.number + 1,
            )  # fmt: skip
        wait([rollouts])
        raise
