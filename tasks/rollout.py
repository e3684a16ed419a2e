"""Fan-out: shards of rollouts over Prefect's task runner, attempts of a shard side by side in threads."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from lightning_core.agents.attempt import AttemptResult, AttemptSpec
from lightning_core.agents.runner import Runner, run_rollout
from lightning_core.config import Settings
from lightning_core.epoch.plan import PlannedRollout
from lightning_core.gateway.handle import GatewayError, GatewayHandle
from lightning_core.lake.manifest import Mode
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step

_shared_lock = threading.Lock()


@dataclass
class _Shared:
    """A runner, how many keep it, how many of these run attempts, and the server that those call."""

    runner: Runner
    users: int = 0
    running: int = 0
    server: GatewayHandle | None = None


_shared: dict[str, _Shared] = {}


def split(rollouts: list[PlannedRollout], shards: int) -> list[list[PlannedRollout]]:
    """Rollouts dealt out over at most so many shards, none empty."""
    return [part for i in range(shards) if (part := rollouts[i::shards])]


@step("rollout shard {number}/{of}")
def rollout_shard(
    settings: Settings,
    server: GatewayHandle,
    rollouts: list[PlannedRollout],
    epoch: int,
    mode: Mode,
    number: int,
    of: int,
    total: int,
    collection: str | None = None,
) -> dict[str, Any]:
    """Run a shard's rollouts (`total`: those of all shards). What an attempt did is in its spans; returned are counts by status and the first errors.

    Failures of single attempts never fail the shard. collection: on a cluster, what rollouts are claimed for; those that
    were begun already are `claimed_before`, and left alone.
    """

    def attempts(runner: Runner, rollout: PlannedRollout) -> AttemptResult | None:
        if collection is not None and not _claimed(server, name, collection, rollout.rollout_id):
            return None
        return _rollout(runner, server, settings, rollout, epoch, mode)

    name = f"{settings.run}/{mode}/{epoch}"
    statuses: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    claimed_before = 0
    what = f"{mode} {epoch} rollouts"
    if collection is None:
        progress = Progress.shared(what, total)
    else:  # other shards are in other processes
        progress = Progress(f"{what}, shard {number}/{of}", len(rollouts))
    waiting, counting = iter(rollouts), threading.Lock()

    def work(runner: Runner) -> None:
        nonlocal claimed_before
        while (rollout := next(waiting, None)) is not None:
            result = attempts(runner, rollout)
            with counting:
                if result is None:
                    claimed_before += 1
                    continue
                statuses[result.status] += 1
                if result.error is not None:
                    errors[result.error[:300]] += 1
            progress.add(note="" if result.status == "ok" else f"last failure: {result.status}")

    workers = min(max(1, settings.rollout.concurrency // of), len(rollouts))
    with (
        shared_runner(settings, server) as runner,
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


def _claimed(server: GatewayHandle, name: str, collection: str, rollout_id: str) -> bool:
    try:
        return server.claim(name, collection, rollout_id)
    except GatewayError as error:  # the flow finds out, and begins again what was not begun
        logger().warning("rollout %s is not begun: %s", rollout_id, error)
        return False


def _rollout(
    runner: Runner, server: GatewayHandle, settings: Settings, rollout: PlannedRollout, epoch: int, mode: Mode
) -> AttemptResult:
    def spec(attempt_id: str) -> AttemptSpec:
        return AttemptSpec(
            run=settings.run,
            epoch=epoch,
            mode=mode,
            rollout_id=rollout.rollout_id,
            attempt_id=attempt_id,
            group_id=rollout.group_id,
            task_id=rollout.task.id,
            task=rollout.task.content,
            base_url=server.attempt_url(rollout.rollout_id, attempt_id),
            token=server.mint(rollout.rollout_id, attempt_id, mode),
        )

    return run_rollout(runner, spec, settings.rollout.retries)


def close_runners() -> None:
    """End the attempts of this process that still run; what waits for its turn is not begun."""
    with _shared_lock:
        for shared in _shared.values():
            shared.runner.close()


@contextlib.contextmanager
def shared_runner(settings: Settings, server: GatewayHandle | None = None) -> Iterator[Runner]:
    """One preloaded pool for all that run the agent in this process, closed when the last of them is done.

    A flow of many epochs keeps it from one to the next. Those that run attempts say which server these call; where one of
    them has closed the pool, they all are to end, and who comes after them has another.
    """
    key = settings.model_dump_json(include={"agent", "home"})
    with _shared_lock:
        shared = _shared.get(key)
        if shared is None or (shared.runner.closed and not shared.running):
            shared = _shared[key] = _Shared(_runner(settings, key), 0 if shared is None else shared.users)
        shared.users += 1
        shared.running += server is not None
        shared.server = server or shared.server
    try:
        yield shared.runner
    finally:
        with _shared_lock:
            shared = _shared[key]
            shared.users -= 1
            shared.running -= server is not None
            if not shared.users:
                _shared.pop(key).runner.close()


def _runner(settings: Settings, key: str) -> Runner:
    def failed_behind(result: AttemptResult) -> str | None:
        server = _shared[key].server
        assert server is not None  # of the one that runs the attempt
        seen = server.attempt(result.rollout_id, result.attempt_id)
        if seen["up_s"] < (result.end_ns - result.start_ns) / 1e9:  # of times, only lengths: a clock may jump
            return "the gateway was started again during the attempt"
        # An agent that ended well may have asked again and been answered, or have gone on without an answer.
        failed = seen["unanswered" if result.status == "ok" else "infrastructure_errors"]
        return str(seen["last_error"]) if failed else None

    return Runner(
        settings.agent,
        model=settings.policies[0].name,
        infrastructure_errors=failed_behind,
        logs=settings.home / "logs" / "attempts",
    )
