"""Spans to training sequences, in SQL."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from lightning_core.config import Settings
from lightning_core.lake.derive import derive, sql_digest
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.stages import run_stage, stage_key
from lightning_core.loading import grader_digest
from tasks.progress import logger, say


@task(task_run_name="derive {epoch.mode} {epoch.epoch}", cache_policy=NO_CACHE, persist_result=False)
def derive_tables(settings: Settings, epoch: EpochManifest) -> dict[str, int]:
    """Run the SQL of the epoch; returns rows by table."""
    lake = Lake(settings.home)
    policies = [
        (p.name, p.agent_match, p.agent_exclude, p.advantages, p.training.max_sequence_tokens)
        for p in settings.policies
    ]
    key = stage_key(
        epoch.planned,
        epoch.span_range,
        settings.reward,
        grader_digest(settings.reward.grader),
        settings.evaluation.success_reward,
        policies,
        sql_digest(settings),
    )

    rows = run_stage(lake, epoch, "derive", key, lambda: derive(lake, epoch, settings, key, say("sql")))
    lake.rebuild_catalog()
    if rows.get("silent_rollouts"):
        logger().warning(
            "%d rollouts called no policy (table silent_rollouts): do they use OPENAI_BASE_URL, and one of the model names %s?",
            rows["silent_rollouts"],
            ", ".join(p.name for p in settings.policies),
        )
    return rows
