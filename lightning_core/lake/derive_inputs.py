"""What settings give to the SQL from spans to sequences: small tables, checked patterns, and the files in order."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from lightning_core.config import Settings, SettingsError
from lightning_core.lake import sql
from lightning_core.lake.manifest import EpochManifest
from lightning_core.loading import grader_digest

# A bucket of rollouts at a time, after the hierarchy; an evaluation stops after REWARDS.
REWARDS = ("triplets/rollout_rewards",)
TRIPLETS = (
    "triplets/policy_calls",
    "triplets/silent_rollouts",
    "triplets/triplets",
    "triplets/merges",
)
# A bucket at a time again, after `make_advantages` has seen all of them.
SEQUENCES = ("advantages/sequences", "advantages/exclusions")
# What is kept for analysts and the trainer; the others are copies of spans and can be made again.
KEPT_REWARDS = ("rollout_rewards",)
KEPT_TRIPLETS = ("policy_calls", "silent_rollouts", "merges")
KEPT_ADVANTAGES = ("advantages",)
KEPT_SEQUENCES = ("sequences", "exclusions")


def sql_files(settings: Settings) -> tuple[str, ...]:
    """Names of the SQL files from rewards to sequences that these settings run: their text is in the stage's key."""
    return (*REWARDS, *TRIPLETS, *_estimators(settings).values(), *SEQUENCES)


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


def make_inputs(con: duckdb.DuckDBPyConnection, settings: Settings, epoch: EpochManifest) -> None:
    """Create the small tables that the SQL reads of the settings: `reward_settings` (one row) and `policies`."""
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


def make_advantages(con: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Create `advantages`: each policy's rows by the estimator that it names."""
    parts = []
    for estimator, file in _estimators(settings).items():
        con.execute(f"CREATE TABLE advantages_{estimator} AS {sql.text(file)}")
        parts.append(
            f"SELECT a.* FROM advantages_{estimator} AS a JOIN policies AS p USING (policy) WHERE p.advantages = '{estimator}'"
        )
    con.execute("CREATE TABLE advantages AS " + " UNION ALL ".join(parts) + " ORDER BY policy, group_id, rollout_id")


def _estimators(settings: Settings) -> dict[str, str]:
    return {name: f"advantages/{name}" for name in sorted({p.advantages for p in settings.policies})}
