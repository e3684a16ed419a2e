"""What settings give to the SQL from spans to sequences: small tables, checked patterns, and the files in order."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lightning_core import algorithms
from lightning_core.config import AirRule, PolicySettings, Settings, SettingsError
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.patterns import pattern
from lightning_core.lake import schema, sql, user_sql
from lightning_core.lake.manifest import EpochManifest
from lightning_core.loading import code_digest
from lightning_core.policies.model import config_files

# Tables that no SQL file makes: those of the settings, of the epoch's opening and of a bucket.
GIVEN = frozenset(
    (
        *(
            "spans",
            "epoch_scope",
            "planned",
            "bucket",
            "user_rules",
            "policies",
            "examples",
            "estimates",
            "known_prompts",
            "tokenizing",
            "tokenized_calls",
        ),
        *("reward_settings", "reward_weights", "policy_weights", "air_rules"),
    )
)
# What is kept for analysts and the trainer; the others are copies of spans and can be made again.
KEPT_REWARDS = ("rewards_given", "rollout_rewards")
KEPT_TRIPLETS = (
    *("policy_rewards", "policy_calls", "silent_rollouts", "reward_steps", "call_returns", "merges"),
    *("agent_prompts", "candidate_agents"),
)
# Narrow as well, and needed again for `sequences`, but not kept: the lake moves rows when it compacts.
GATHERED = ("call_rows",)
# Made once for all, of small columns.
CHECKS = ("bad_rewards",)
CHECKS_OF_TRAINING = ("unmatched_settings", "policy_overlaps")
KEPT_ADVANTAGES = ("advantages", "exclusions")

# Columns of spans that may be long: a rule (`reward.air`) on another one does not read them.
_TEXTS = ["input_messages", "output_messages", "tool_arguments", "tool_result", "task", "output", "events", "links"]
# What vLLM takes from the model's generation_config.json where a request leaves it open.
_FILLED_IN = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
)
_ADVANTAGES = "policies.advantages"
_ESTIMATOR_KEYS = ("policy", "group_id", "agent", "step", "rollout_id", "attempt_id")
_ESTIMATES = {
    **{"group_rollouts": "BIGINT", "group_mean": "DOUBLE", "group_std": "DOUBLE"},
    **{"left_out": "VARCHAR", "fell_back": "BOOLEAN"},
}
# What is there when advantages are made, so that estimators may read it.
_FOR_ESTIMATORS = frozenset(("returns", "examples", "call_returns", "policy_calls", "spans"))


# `tokenized_calls`: what epoch/tokenize.py makes of the text of calls without token ids.
TOKENIZED = pa.schema(
    [
        *((name, pa.string()) for name in ("rollout_id", "attempt_id")),
        ("record_offset", pa.int64()),
        ("record_index", pa.int32()),
        ("policy", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("flaw", pa.string()),
    ]
)


def sql_files(policies: list[PolicySettings]) -> tuple[str, ...]:
    """Return the names of the SQL files that run for these policies: their text is in the stage's key."""
    own = sql.steps(*_built_in(policies), there=_FOR_ESTIMATORS)
    kept = (*KEPT_REWARDS, *KEPT_TRIPLETS, *CHECKS, *CHECKS_OF_TRAINING, *KEPT_ADVANTAGES, "sequences")
    run = sql.steps("span_tree", "epoch_spans", "foreign_calls", *kept, there=GIVEN)
    return tuple(sorted({*run, *own, "triplets/air_defaults", "macros"}))


def settings_read(settings: Settings) -> list[Any]:
    """Return all that the SQL reads of the settings, less what is at its default, as it goes into the stage's key."""
    return [
        settings.reward.model_dump(mode="json", exclude_defaults=True),
        code_digest(settings.reward.grader),
        settings.evaluation.success_reward,
        [p.model_dump(mode="json", exclude=_not_read(p), exclude_defaults=True) for p in settings.policies],
        [p.training.max_sequence_tokens for p in settings.policies],
        [rule.model_dump(mode="json", exclude_defaults=True) for rule in settings.agent_rules],
        {e: user_sql.read(e, _ADVANTAGES) for e in _estimators(settings.policies) if e.endswith(".sql")},
        *(code_digest(p.algorithm) for p in settings.policies if algorithms.is_own(p.algorithm)),
    ]


def _not_read(policy: PolicySettings) -> set[str]:
    # What a class of one's own selects may depend on its options.
    of_trainer = {"model", "aliases", "lora", "training"}
    return of_trainer if algorithms.is_own(policy.algorithm) else {*of_trainer, "options"}


def check_estimators(policies: list[PolicySettings]) -> None:
    """Raise SettingsError for an estimator of the user's that is not there or does not run; before the first rollout."""
    with duckdb.connect() as con:
        con.execute(
            """
            CREATE TABLE returns (policy VARCHAR, group_id VARCHAR, agent VARCHAR, step BIGINT, rollout_id VARCHAR,
                attempt_id VARCHAR, reward DOUBLE, return DOUBLE, acted BOOLEAN)
            """
        )
        for estimator in _estimators(policies):
            if estimator.endswith(".sql"):
                _estimate(con, estimator)


def make_inputs(con: duckdb.DuckDBPyConnection, epoch: Epoch) -> None:
    """Create the small tables that the SQL reads of the settings: `reward_settings` (one row), `reward_weights`,
    `policy_weights`, `air_rules`, and `policies` (one row a policy, with the version that the epoch trains)."""
    manifest, policies, reward = epoch.manifest, epoch.settings.policies, epoch.settings.reward
    con.execute(
        """
        CREATE TABLE reward_settings AS
        SELECT ?::DOUBLE AS failure_reward, ?::VARCHAR AS reward_match, ?::DOUBLE AS success_reward,
            ?::VARCHAR AS grader, ?::VARCHAR AS assign, ?::DOUBLE AS gamma, ?::BOOLEAN AS weighted, ?::BOOLEAN AS air
        """,
        [
            reward.failure_reward,
            reward.reward_match,
            epoch.settings.evaluation.success_reward,
            code_digest(reward.grader),
            reward.assign,
            reward.gamma,
            bool(reward.weights),
            reward.air != "off",
        ],
    )
    _table(
        con,
        "reward_weights",
        {"name": (pa.string(), list(reward.weights)), "weight": (pa.float64(), list(reward.weights.values()))},
    )
    own = [(p.name, name, weight) for p in policies for name, weight in p.rewards.items()]
    kinds = {"policy": pa.string(), "name": pa.string(), "weight": pa.float64()}
    _table(con, "policy_weights", {key: (kind, [row[i] for row in own]) for i, (key, kind) in enumerate(kinds.items())})
    _air_rules(con, reward.air)
    _examples(con, policies)
    taker = tokenizing_policy(policies)
    _table(
        con,
        "tokenizing",
        {
            "policy": (pa.string(), [taker.name] if taker else []),
            "every": (pa.bool_(), [taker.examples.without_ids == "tokenize"] if taker else []),
        },
    )
    con.from_arrow(TOKENIZED.empty_table()).create("tokenized_calls")
    prompts = manifest.prompts or {}
    _table(
        con,
        "known_prompts",
        {"prompt_key": (pa.uint64(), [int(key) for key in prompts]), "agent": (pa.string(), list(prompts.values()))},
    )
    _table(
        con,
        "policies",
        {
            "policy": (pa.string(), [p.name for p in policies]),
            "agent_match": (pa.string(), [pattern(manifest, p) for p in policies]),
            "agent_exclude": (pa.string(), [p.agent_exclude for p in policies]),
            "ambiguous": (pa.string(), [p.ambiguous for p in policies]),
            "advantages": (pa.string(), [p.estimator for p in policies]),
            "min_spread": (pa.float64(), [p.min_spread for p in policies]),
            # An example is one however it was sampled; a policy gradient is of the distribution it was sampled from.
            "imitates": (pa.bool_(), [p.imitates for p in policies]),
            "other_sampling": (pa.string(), [p.other_sampling for p in policies]),
            "truncated": (pa.string(), [p.truncated for p in policies]),
            "merge": (pa.string(), [p.merge for p in policies]),
            "too_long": (pa.string(), [p.too_long for p in policies]),
            "max_sequence_tokens": (pa.int64(), [p.training.max_sequence_tokens for p in policies]),
            "max_version_lag": (pa.int64(), [p.max_version_lag for p in policies]),
            "version": (pa.int64(), [_version(manifest, p.name) for p in policies]),
            "temperature": (pa.float64(), [p.sampling.temperature for p in policies]),
            "top_p": (pa.float64(), [p.sampling.top_p for p in policies]),
            "left_open": (
                pa.struct([(key, pa.float64()) for key in _FILLED_IN]),
                [_generation_defaults(epoch, p) for p in policies],
            ),
            "own_rewards": (pa.bool_(), [bool(p.rewards) for p in policies]),
            "scheduled": (pa.bool_(), [p.trains_in(epoch.number) for p in policies]),
            "vocabulary": (pa.int64(), [_vocabulary(epoch, p) for p in policies]),
        },
    )


def make_advantages(con: duckdb.DuckDBPyConnection, policies: list[PolicySettings]) -> None:
    """Create `advantages` from `call_returns` of all buckets: each policy's rows by the estimator that it names.

    Raises SettingsError for an estimator of the user's that does not run, naming file and columns.
    """
    sql.create(con, "advantages/returns")
    columns = ", ".join(f"{name} {kind}" for name, kind in _ESTIMATES.items())
    con.execute(
        f"""
        CREATE TABLE estimates (policy VARCHAR, group_id VARCHAR, agent VARCHAR, step BIGINT, rollout_id VARCHAR,
            attempt_id VARCHAR, {columns}, advantage DOUBLE)
        """
    )
    for name in sql.steps(*_built_in(policies), there=_FOR_ESTIMATORS):
        if name.removeprefix("advantages/") not in _built_in(policies):
            sql.create(con, name)
    for estimator in _estimators(policies):
        found = _estimate(con, estimator)
        wanted = [*_ESTIMATOR_KEYS, "advantage", *(name for name in _ESTIMATES if name in found)]
        con.execute(
            f"""
            INSERT INTO estimates BY NAME
            SELECT {", ".join(f"e.{name}" for name in wanted)}
            FROM estimated AS e JOIN policies USING (policy) WHERE policies.advantages = ?
            """,
            [estimator],
        )
    sql.create(con, "advantages/advantages")


def tokenizing_policy(policies: list[PolicySettings]) -> PolicySettings | None:
    """Return the policy that takes what has no token ids as examples: the first that imitates and says so, else the
    first that imitates."""
    imitating = [policy for policy in policies if policy.imitates]
    return next((p for p in imitating if p.examples.without_ids == "tokenize"), next(iter(imitating), None))


def _estimators(policies: list[PolicySettings]) -> list[str]:
    return sorted({p.estimator for p in policies})


def _built_in(policies: list[PolicySettings]) -> list[str]:
    return [estimator for estimator in _estimators(policies) if not estimator.endswith(".sql")]


def _estimate(con: duckdb.DuckDBPyConnection, estimator: str) -> list[str]:
    """Create `estimated` by one estimator; returns its columns."""
    needed = (*_ESTIMATOR_KEYS, "advantage")
    contract = f"it reads the table `returns` and returns the columns {', '.join(needed)}, one row per row that acted"
    try:
        if estimator.endswith(".sql"):
            with (
                user_sql.alone(con, ["returns"]) as own,
                user_sql.asked(own, user_sql.read(estimator, _ADVANTAGES)) as answer,
            ):
                con.register("estimated_arrow", answer.table())
            con.execute("CREATE OR REPLACE TABLE estimated AS FROM estimated_arrow")
            con.unregister("estimated_arrow")
        else:
            con.execute(f"CREATE OR REPLACE TABLE estimated AS {sql.text(f'advantages/{estimator}')}")
        columns = [row[0] for row in con.execute("DESCRIBE estimated").fetchall()]
        missing = [name for name in needed if name not in columns]
        if missing:
            raise SettingsError(f"policies.advantages: {estimator}: no column {', '.join(missing)}; {contract}")
        keys = ", ".join(_ESTIMATOR_KEYS)
        twice = con.execute(f"SELECT {keys} FROM estimated GROUP BY ALL HAVING count(*) > 1 LIMIT 1").fetchone()
        con.execute("SELECT count(advantage::DOUBLE), count(step::BIGINT) FROM estimated").fetchall()
    except (duckdb.Error, user_sql.QueryError) as error:
        reason = str(error).split("\n", 1)[0]
        raise SettingsError(f"policies.advantages: {estimator}: {reason}; {contract}") from None
    if twice is not None:
        where = ", ".join(f"{name} {value!r}" for name, value in zip(_ESTIMATOR_KEYS, twice, strict=True))
        raise SettingsError(f"policies.advantages: {estimator}: two rows for {where}; {contract}")
    return columns


def _examples(con: duckdb.DuckDBPyConnection, policies: list[PolicySettings]) -> None:
    """Create `examples`: what each policy's `sft` section says; only sql/advantages/sft.sql reads it."""
    _table(
        con,
        "examples",
        {
            "policy": (pa.string(), [p.name for p in policies]),
            "best": (pa.int64(), [p.examples.best for p in policies]),
            "min_reward": (pa.float64(), [p.examples.min_reward for p in policies]),
        },
    )


def _air_rules(con: duckdb.DuckDBPyConnection, air: str | list[AirRule]) -> None:
    """Create `air_rules`: the settings' rules, or those shipped. An attribute that is a column of spans is looked up
    there."""
    if air == "default":
        con.execute(f"CREATE TABLE rules AS {sql.text('triplets/air_defaults')}")
    else:
        rules = air if isinstance(air, list) else []
        text = ("name", "op", "tool", "status", "attribute", "pattern", "per")
        columns = {name: (pa.string(), [getattr(rule, name) for rule in rules]) for name in text}
        of_numbers = ("value", "cap", "before_limit")
        numbers = {name: (pa.float64(), [getattr(rule, name) for rule in rules]) for name in of_numbers}
        _table(con, "rules", columns | numbers)
    con.execute(
        f"""
        CREATE TABLE air_rules AS
        SELECT
            name, value::DOUBLE AS value, CASE WHEN before_limit IS NULL THEN op ELSE 'llm' END AS op, tool, status, attribute, pattern, per, cap::DOUBLE AS cap, before_limit::DOUBLE AS before_limit,
            looked_at AS column_name,
            CASE
                WHEN attribute IS NULL AND pattern IS NULL THEN NULL
                WHEN list_contains($texts, looked_at) THEN 'text'
                WHEN list_contains($columns, looked_at) THEN 'column'
                ELSE 'attributes'
            END AS found_in
        FROM (
            -- a pattern on nothing else is on the tool's result; the alias of a column is that column
            SELECT
                rules.*,
                CASE WHEN attribute IS NULL THEN 'tool_result' ELSE coalesce(aliases.column_name, attribute) END AS looked_at
            FROM rules
            LEFT JOIN ({sql.text("ingest/attribute_aliases")}) AS aliases ON aliases.key = rules.attribute
        )
        """,
        {"texts": _TEXTS, "columns": [c.name for c in schema.SPANS if c.type in ("VARCHAR", "BIGINT", "DOUBLE")]},
    )


def _table(con: duckdb.DuckDBPyConnection, name: str, columns: dict[str, tuple[pa.DataType, list[Any]]]) -> None:
    con.from_arrow(pa.table({key: pa.array(values, kind) for key, (kind, values) in columns.items()})).create(name)


def _version(epoch: EpochManifest, policy: str) -> int | None:
    """Return the number of the policy's version (7 of `v0007`); None where the epoch has no version of it."""
    digits = (epoch.versions or epoch.sampled).get(policy, "").removeprefix("v")
    return int(digits) if digits.isdigit() else None


def model_files(epoch: Epoch, policy: PolicySettings) -> list[Path]:
    """Return where config.json and tokenizer of the trained version may be: an adapter's are its base model's."""
    version = epoch.manifest.versions.get(policy.name, "-")
    files = [epoch.policies[policy.name].folder / version / "config.json"]
    return files if policy.lora is None else files + config_files(policy.model, epoch.settings.models)


def _vocabulary(epoch: Epoch, policy: PolicySettings) -> int | None:
    """Return the number of token ids of the version that is trained, where a config.json says so."""
    for file in model_files(epoch, policy):
        with contextlib.suppress(OSError, ValueError):
            config = json.loads(file.read_text())
            size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
            if isinstance(size, int):
                return size
    return None


def _generation_defaults(epoch: Epoch, policy: PolicySettings) -> dict[str, float]:
    """Return what vLLM samples with where a request says nothing, as far as generation_config.json of the model says
    it."""
    for file in model_files(epoch, policy):
        with contextlib.suppress(OSError, ValueError):
            config = json.loads(file.with_name("generation_config.json").read_text())
            return {key: config[key] for key in _FILLED_IN if isinstance(config.get(key), int | float)}
    return {}
