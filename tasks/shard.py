"""Fan-out: shards of rollouts over Prefect's task runner, attempts of a shard side by side in threads."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

from lightning_core.agents.runner import Runner, run_rollout
from lightning_core.agents.shared import shared_runner
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.plan import PlannedRollout, attempt_of
from lightning_core.gateway.handle import GatewayError, GatewayHandle
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step


def split(rollouts: list[PlannedRollout], shards: int) -> list[list[PlannedRollout]]:
    """Divide rollouts among at most so many shards, none empty."""
    return [part for i in range(shards) if (part := rollouts[i::shards])]


@step("rollout shard {number}/{of}")
def rollout_shard(
    epoch: Epoch,
    gateway: GatewayHandle,
    rollouts: list[PlannedRollout],
    number: int,
    of: int,
    total: int,
    round_id: str | None = None,
) -> dict[str, Any]:
    """Run a shard's rollouts (`total`: those of all shards).

    What an attempt did is in its spans; returns counts by status and the five most frequent errors. Failures of
    single attempts never fail the shard. round_id: on a cluster, the round in which rollouts are claimed; those that
    were begun already are `claimed_before`, and left alone.
    """

    name, settings = f"{epoch.run}/{epoch.mode}/{epoch.number}", epoch.settings
    statuses: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    claimed_before = 0
    if round_id is None:
        progress = Progress.shared("rollouts", total, epoch.named, f"{epoch.home}/{epoch.run}")
    else:  # other shards are in other processes
        progress = Progress(f"rollouts, shard {number}/{of}", len(rollouts), epoch.named)
    waiting, counting = iter(rollouts), threading.Lock()

    def work(runner: Runner) -> None:
        nonlocal claimed_before
        while (rollout := next(waiting, None)) is not None:
            if round_id is not None and not _claimed(gateway, name, round_id, rollout.rollout_id):
                with counting:
                    claimed_before += 1
                continue
            spec = partial(attempt_of, epoch, rollout, gateway=gateway)
            result = run_rollout(runner, spec, settings.rollout.retries)
            with counting:
                statuses[result.status] += 1
                if result.error is not None:
                    errors[result.error[:300]] += 1
            progress.add(note="" if result.status == "ok" else f"last failure: {result.status}")

    workers = min(max(1, settings.rollout.concurrency // of), len(rollouts))
    with (
        shared_runner(settings.agent, settings.policies[0].name, epoch.home, gateway) as runner,
        ThreadPoolExecutor(workers, thread_name_prefix="attempt") as threads,
    ):
        futures = [threads.submit(work, runner) for _ in range(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            waiting = iter(())
            runner.close()  # ends the attempts under way, so that the threads return
            raise
    return {"statuses": dict(statuses), "errors": dict(errors.most_common(5)), "claimed_before": claimed_before}


def _claimed(gateway: GatewayHandle, name: str, round_id: str, rollout_id: str) -> bool:
    try:
        return gateway.claim(name, round_id, rollout_id)
    except GatewayError as error:  # the flow finds out, and begins again what was not begun
        logger().warning("rollout %s is not begun: %s", rollout_id, error)
        return False
