"""Spans to training sequences, in SQL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pyarrow as pa
from prefect.task_runners import TaskRunner

from lightning_core.config import Settings
from lightning_core.epoch.buckets import SPANS_WORTH_A_BUCKET, Job, Run
from lightning_core.epoch.derive import derive, work_bucket
from lightning_core.epoch.patterns import require_apart
from lightning_core.epoch.stage_keys import triplets_key
from lightning_core.epoch.stages import run_stage
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_flows.tasks.cluster import in_order, task_runner
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step


@step("derive {epoch.mode} {epoch.epoch}")
def derive_tables(settings: Settings, epoch: EpochManifest) -> dict[str, int]:
    """Run the SQL of the epoch; returns rows by table. Raises SettingsError where policies' patterns overlap on an agent."""
    lake = Lake(settings.home)
    key = triplets_key(settings, epoch)

    def derived() -> dict[str, int]:
        with _elsewhere(settings, epoch) as (run, spans):
            return derive(lake, epoch, settings, key, _shown(epoch), spans, run)

    rows = run_stage(lake, epoch, "derive", key, derived)
    lake.rebuild_catalog()
    if epoch.mode == "train":
        require_apart(lake, epoch)
    if rows.get("silent_rollouts"):
        logger().warning(
            "%d rollouts called no policy (table silent_rollouts): do they use OPENAI_BASE_URL, and one of the model names %s?",
            rows["silent_rollouts"],
            ", ".join(p.name for p in settings.policies),
        )
    for table, columns in (("bad_rewards", "name, value, reason, rollout_id, span_id"), ("unmatched_settings", "*")):
        if rows.get(table):
            logger().warning(
                "%d %s; the first: %s", rows[table], table.replace("_", " "), _first(lake, epoch, table, columns)
            )
    return rows


@step("sql, bucket {job.bucket.number}/{job.bucket.of}")
def derive_bucket(settings: Settings, epoch: EpochManifest, job: Job) -> dict[str, pa.Table]:
    """One bucket's SQL, over the lake in `home` as this machine sees it."""
    return work_bucket(Lake(settings.home), epoch, settings, job)


def _shown(epoch: EpochManifest) -> Callable[[str, int], None]:
    """Progress of the SQL: of its statements, or of its buckets where there are several."""
    progress = cache(partial(Progress, f"{epoch.mode} {epoch.epoch} SQL"))

    def tell(what: str, of: int) -> None:
        progress(of).add(note=what)
        logger().debug("sql: %s", what)

    return tell


@contextlib.contextmanager
def _elsewhere(settings: Settings, epoch: EpochManifest) -> Iterator[tuple[Run | None, int | None]]:
    """How buckets are worked on in a cluster, and of how many spans they are; (None, None) for threads."""
    if settings.cluster.engine == "threads":
        yield None, None
        return
    with contextlib.ExitStack() as stack:

        @cache
        def runner() -> TaskRunner[Any]:  # two passes use it, an epoch of one bucket does not
            return stack.enter_context(task_runner(settings.cluster))

        def run(jobs: Iterator[Job]) -> Iterator[dict[str, pa.Table]]:
            each = ({"settings": settings, "epoch": epoch, "job": job} for job in jobs)
            return in_order(runner(), derive_bucket, each)

        yield run, SPANS_WORTH_A_BUCKET


def _first(lake: Lake, epoch: EpochManifest, table: str, columns: str) -> str:
    with lake.connect(epoch.span_range) as con:
        relation = con.read_parquet(str(lake.path(epoch.tables[table]))).select(columns).limit(5)
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    return "; ".join(", ".join(f"{k} {v}" for k, v in row.items() if k not in ("run", "epoch")) for row in rows)
