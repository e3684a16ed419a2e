"""Prefect's task runners for what is spread: threads of this process, Ray, or Dask, by `cluster:` of the settings.

with task_runner(settings.cluster) as runner:
    future = submit(runner, rollout_shard, settings=settings, …)
    result = outcome(future)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from prefect import Task
from prefect.context import FlowRunContext
from prefect.states import State
from prefect.task_runners import TaskRunner

from lightning_core.config import ClusterSettings
from lightning_core.errors import LightningError
from lightning_flows.tasks.progress import logger

_AHEAD = 8  # batches or buckets under way, and in memory here
_TRIES = 3
_LOOK_S = 0.05


class WorkerLost(LightningError):
    """The engine lost the process that ran a task, or could not run it there."""


@contextlib.contextmanager
def task_runner(cluster: ClusterSettings) -> Iterator[TaskRunner[Any]]:
    """Start the runner for the block; a cluster that is started for it ends with it. Called inside a flow."""
    if cluster.engine == "threads":
        flow = FlowRunContext.get()
        assert flow is not None, "stages are called inside a flow"
        yield flow.task_runner
        return
    with _ray(cluster) if cluster.engine == "ray" else _dask(cluster) as runner:
        yield runner


def submit(runner: TaskRunner[Any], task: Task[Any, Any], **parameters: Any) -> Future[State[Any]]:
    """Run a task on the runner; returns a future of its final state, or of the error that the engine raises."""
    wrapped = runner.submit(task, parameters).wrapped_future
    # Ray's references make a future of the standard library; Dask's have the two methods of it that are used.
    return wrapped.future() if hasattr(wrapped, "future") else wrapped


def settled(futures: Sequence[Future[State[Any]]], timeout_s: float) -> bool:
    """Wait until all are done, so many seconds at most; returns whether they are."""
    deadline = time.monotonic() + timeout_s
    while not all(future.done() for future in futures):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def outcome(future: Future[State[Any]]) -> Any:
    """Wait for a task and return what it returned; raises what it raised, and WorkerLost where the engine lost it."""
    try:
        state = future.result()
    except Exception as error:
        said = str(error).strip().partition("\n")[0]  # some errors of an engine say nothing
        raise WorkerLost(f"{type(error).__name__}: {said:.300}") from error
    return state.result(raise_on_failure=True, _sync=True)  # type: ignore[call-overload]


def in_order(runner: TaskRunner[Any], task: Task[Any, Any], parameters: Iterator[dict[str, Any]]) -> Iterator[Any]:
    """Yield what a task returns for each of these parameters, in their order; a few run ahead of the one that is read.

    For tasks that only compute: what is lost with a worker is run again. Raises WorkerLost where that does not help.
    """
    ahead: deque[tuple[dict[str, Any], Future[State[Any]]]] = deque()
    for each in parameters:
        ahead.append((each, submit(runner, task, **each)))
        if len(ahead) > _AHEAD:
            yield _insist(runner, task, *ahead.popleft())
    while ahead:
        yield _insist(runner, task, *ahead.popleft())


def _insist(
    runner: TaskRunner[Any], task: Task[Any, Any], parameters: dict[str, Any], future: Future[State[Any]]
) -> Any:
    for _ in range(_TRIES - 1):
        try:
            return outcome(future)
        except WorkerLost as error:
            logger().warning("%s is run again: %s", task.name, error)
            future = submit(runner, task, **parameters)
    return outcome(future)


def _ray(cluster: ClusterSettings) -> TaskRunner[Any]:
    from prefect_ray import RayTaskRunner

    # Its telemetry would leave the machine; its dashboard, and what is on the machine's own address, would listen to others.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {"num_cpus": cluster.workers, "_node_ip_address": "127.0.0.1"}
    local |= {"include_dashboard": False, "log_to_driver": False}
    return RayTaskRunner(cluster.address, init_kwargs={} if cluster.address else local)


def _dask(cluster: ClusterSettings) -> TaskRunner[Any]:
    from prefect_dask import DaskTaskRunner

    if cluster.address:
        return DaskTaskRunner(address=cluster.address)
    # A thread a process, as in Ray: what is spread is Python that computes, or rollouts with threads of their own.
    local = {"n_workers": cluster.workers or os.cpu_count(), "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=local)
