"""Runs the SQL from spans to training sequences for one epoch, every step a table."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import duckdb
import pyarrow as pa

from lightning_core.config import Settings, SettingsError
from lightning_core.lake import sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.loading import grader_digest

logger = logging.getLogger(__name__)

_ATTEMPTS = ("hierarchy/scored_attempts", "hierarchy/epoch_spans")
_REWARDS = (
    "hierarchy/llm_twins",
    "hierarchy/parents",
    "hierarchy/span_tree",
    "triplets/rollout_rewards",
)
_TRIPLETS = (
    "triplets/policy_calls",
    "triplets/silent_rollouts",
    "triplets/triplets",
    "triplets/merges",
)
_AFTER_ADVANTAGES = ("advantages/sequences", "advantages/exclusions")
# Tables kept for analysts and the trainer; the others are copies of spans and can be made again.
_KEPT = ("scored_attempts", "span_tree", "rollout_rewards")
_KEPT_OF_TRAINING = ("policy_calls", "silent_rollouts", "merges", "advantages", "sequences", "exclusions")


def sql_digest(settings: Settings) -> str:
    """Digest of every SQL file that `derive` runs with these settings."""
    return sql.digest(*_ATTEMPTS, *_REWARDS, *_TRIPLETS, *_estimators(settings).values(), *_AFTER_ADVANTAGES)


def check_patterns(settings: Settings) -> None:
    """Raise SettingsError for a pattern RE2 cannot take, naming the setting; called before the first rollout."""
    patterns = {"reward.reward_match": settings.reward.reward_match}
    for i, policy in enumerate(settings.policies):
        patterns[f"policies.{i}.agent_match"] = policy.agent_match
        patterns[f"policies.{i}.agent_exclude"] = policy.agent_exclude
    with duckdb.connect() as con:
        for key, pattern in patterns.items():
            if pattern is None:
                continue
            try:
                con.execute("SELECT regexp_matches('', ?)", [pattern])
            except duckdb.Error as error:
                reason = str(error).split("\n", 1)[0]
                raise SettingsError(
                    f"{key}: {pattern!r} is no pattern RE2 can take ({reason}); RE2 has no look-around and no "
                    "back-references: say what to leave out with agent_exclude"
                ) from None


@contextlib.contextmanager
def attempts(lake: Lake, epoch: EpochManifest) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with `scored_attempts` and `epoch_spans` of the epoch's spans: what a grader works on."""
    with lake.connect(epoch.span_range) as con:
        con.execute(
            "CREATE TABLE epoch_scope AS SELECT ?::VARCHAR AS run, ?::BIGINT AS epoch, ?::VARCHAR AS mode",
            [epoch.run, epoch.epoch, epoch.mode],
        )
        con.register("planned", pa.table({"rollout_id": pa.array(epoch.planned, pa.string())}))
        for name in _ATTEMPTS:
            _create(con, name)
        yield con


def derive(
    lake: Lake, epoch: EpochManifest, settings: Settings, key: str, on_progress: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Build the derived tables of an epoch from its spans; returns rows by table. The caller saves the manifest.

    An evaluation stops at the rewards: nothing is trained on it.
    """
    estimators = _estimators(settings)
    with attempts(lake, epoch) as con:
        _inputs(con, settings)
        for name in _REWARDS:
            _create(con, name, on_progress)
        kept: tuple[str, ...] = _KEPT
        if epoch.mode == "train":
            for name in _TRIPLETS:
                _create(con, name, on_progress)
            parts = []
            for estimator, file in estimators.items():
                con.execute(f"CREATE TABLE advantages_{estimator} AS {sql.text(file)}")
                parts.append(
                    f"SELECT a.* FROM advantages_{estimator} AS a JOIN policies AS p USING (policy) WHERE p.advantages = '{estimator}'"
                )
            con.execute(
                "CREATE TABLE advantages AS " + " UNION ALL ".join(parts) + " ORDER BY policy, group_id, rollout_id"
            )
            for name in _AFTER_ADVANTAGES:
                _create(con, name, on_progress)
            kept += _KEPT_OF_TRAINING
        for table in kept:
            lake.put_table(epoch, table, con.sql(f"FROM {table}").to_arrow_table(), key)
    return {name: table.rows for name, table in epoch.tables.items()}


def _estimators(settings: Settings) -> dict[str, str]:
    return {name: f"advantages/{name}" for name in sorted({p.advantages for p in settings.policies})}


def _create(con: duckdb.DuckDBPyConnection, name: str, on_progress: Callable[[str], None] | None = None) -> None:
    if on_progress is not None:
        on_progress(name)
    con.execute(f"CREATE TABLE {name.rsplit('/', 1)[-1]} AS {sql.text(name)}")


def _inputs(con: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    con.execute(
        """
        CREATE TABLE reward_settings AS
        SELECT ?::DOUBLE AS failure_reward, ?::VARCHAR AS reward_match, ?::DOUBLE AS success_reward,
            ?::VARCHAR AS grader
        """,
        [
            settings.reward.failure_reward,
            settings.reward.reward_match,
            settings.evaluation.success_reward,
            grader_digest(settings.reward.grader),
        ],
    )
    policies = pa.table(
        {
            "policy": [p.name for p in settings.policies],
            "agent_match": [p.agent_match for p in settings.policies],
            "agent_exclude": pa.array([p.agent_exclude for p in settings.policies], pa.string()),
            "advantages": [p.advantages for p in settings.policies],
            "max_sequence_tokens": [p.training.max_sequence_tokens for p in settings.policies],
        }
    )
    con.register("policies_arrow", policies)
    con.execute("CREATE TABLE policies AS FROM policies_arrow")
