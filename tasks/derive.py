"""Spans to training sequences, in SQL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pyarrow as pa
from prefect.task_runners import TaskRunner

from lightning_core.epoch.buckets import SPANS_WORTH_A_BUCKET, Job, RunBuckets
from lightning_core.epoch.derive import derive, first_rows, work_bucket
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.patterns import require_apart
from lightning_core.epoch.stage_keys import sequences_key
from lightning_core.epoch.stages import run_stage
from lightning_flows.tasks.cluster import in_order, task_runner
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step


@step("sequences of {epoch.named}")
def derive_tables(epoch: Epoch) -> dict[str, int]:
    """Run the SQL of the epoch; returns rows by table. Raises SettingsError where policies' patterns overlap on an agent."""
    key = sequences_key(epoch)

    def derived() -> dict[str, int]:
        with _elsewhere(epoch) as (run, spans):
            return derive(epoch, key, _shown(epoch), spans, run)

    rows = run_stage(epoch, "sequences", key, derived)
    epoch.lake.rebuild_catalog()
    if epoch.mode == "train":
        require_apart(epoch)
    if rows.get("silent_rollouts"):
        logger().warning(
            "%d rollouts called no policy (table silent_rollouts): do they use OPENAI_BASE_URL, and one of the model names %s?",
            rows["silent_rollouts"],
            ", ".join(p.name for p in epoch.settings.policies),
        )
    for table, columns in (("bad_rewards", "name, value, reason, rollout_id, span_id"), ("unmatched_settings", "*")):
        if rows.get(table):
            logger().warning(
                "%d %s; the first: %s", rows[table], table.replace("_", " "), first_rows(epoch, table, columns)
            )
    return rows


@step("sql, bucket {job.bucket.number}/{job.bucket.of}")
def derive_bucket(epoch: Epoch, job: Job) -> dict[str, pa.Table]:
    """Run one bucket's SQL, over the lake in `home` as this machine sees it."""
    return work_bucket(epoch, job)


def _shown(epoch: Epoch) -> Callable[[str, int], None]:
    """Return a function that shows the SQL's progress: its statements, or its buckets where there are several."""
    progress = cache(partial(Progress, "sequences", of=epoch.named))

    def tell(what: str, of: int) -> None:
        progress(of).add(note=what)
        logger().debug("sql: %s", what)

    return tell


@contextlib.contextmanager
def _elsewhere(epoch: Epoch) -> Iterator[tuple[RunBuckets | None, int | None]]:
    """Yield what runs buckets on a cluster, and how many spans a bucket has; (None, None) for threads."""
    if epoch.settings.cluster.engine == "threads":
        yield None, None
        return
    with contextlib.ExitStack() as stack:

        @cache
        def runner() -> TaskRunner[Any]:  # two passes use it, an epoch of one bucket does not
            return stack.enter_context(task_runner(epoch.settings.cluster))

        def run(jobs: Iterator[Job]) -> Iterator[dict[str, pa.Table]]:
            each = ({"epoch": epoch, "job": job} for job in jobs)
            return in_order(runner(), derive_bucket, each)

        yield run, SPANS_WORTH_A_BUCKET
