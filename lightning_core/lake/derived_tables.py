"""The tables that an epoch's derivation and training keep, with the columns that views and questions may rely on.

Where nothing was derived yet these are there and empty; where an older version derived a table without a column, the
column is there and NULL.
"""

from __future__ import annotations

_COLUMNS = {
    "scored_attempts": "rollout_id VARCHAR, attempt_id VARCHAR, mode VARCHAR, group_id VARCHAR, task_id VARCHAR, "
    "outcome VARCHAR, error VARCHAR, start_ns BIGINT, end_ns BIGINT, counts BOOLEAN, left_out VARCHAR",
    "span_tree": "rollout_id VARCHAR, attempt_id VARCHAR, node BIGINT, trace_id VARCHAR, span_id VARCHAR, "
    "declared_parent_id VARCHAR, parent_id VARCHAR, parent_node BIGINT, method VARCHAR, candidates BIGINT, "
    "confidence DOUBLE, depth INTEGER, name VARCHAR, op VARCHAR, agent VARCHAR, agent_path VARCHAR, "
    "ambiguous BOOLEAN, twin_of BIGINT, repeated_id BOOLEAN, start_ns BIGINT, end_ns BIGINT",
    "rewards_given": "rollout_id VARCHAR, attempt_id VARCHAR, node BIGINT, span_id VARCHAR, agent VARCHAR, "
    "ambiguous BOOLEAN, name VARCHAR, source VARCHAR, value DOUBLE, weight DOUBLE, emitted_ns BIGINT, counts BOOLEAN, "
    "left_out VARCHAR",
    "rollout_rewards": "rollout_id VARCHAR, attempt_id VARCHAR, mode VARCHAR, group_id VARCHAR, task_id VARCHAR, "
    "outcome VARCHAR, reward DOUBLE, air DOUBLE, success BOOLEAN, source VARCHAR, left_out VARCHAR",
    "policy_rewards": "policy VARCHAR, rollout_id VARCHAR, attempt_id VARCHAR, node BIGINT, span_id VARCHAR, agent VARCHAR, "
    "ambiguous BOOLEAN, name VARCHAR, source VARCHAR, value DOUBLE, weight DOUBLE, emitted_ns BIGINT, counts BOOLEAN",
    "policy_calls": "call_id BIGINT, rollout_id VARCHAR, attempt_id VARCHAR, group_id VARCHAR, span_id VARCHAR, "
    "response_id VARCHAR, start_ns BIGINT, end_ns BIGINT, agent VARCHAR, agent_path VARCHAR, method VARCHAR, "
    "policy VARCHAR, policy_version VARCHAR, prompt_tokens INTEGER, response_tokens INTEGER, other_sampling BOOLEAN, "
    "left_out VARCHAR",
    "silent_rollouts": "rollout_id VARCHAR, attempt_id VARCHAR, outcome VARCHAR, calls BIGINT",
    "reward_steps": "rollout_id VARCHAR, attempt_id VARCHAR, node BIGINT, span_id VARCHAR, name VARCHAR, source VARCHAR, "
    "value DOUBLE, policy VARCHAR, agent VARCHAR, call_id BIGINT, step BIGINT, left_out VARCHAR",
    "call_returns": "call_id BIGINT, policy VARCHAR, group_id VARCHAR, rollout_id VARCHAR, attempt_id VARCHAR, "
    "agent VARCHAR, step BIGINT, reward DOUBLE, return DOUBLE, left_out VARCHAR",
    "merges": "call_id BIGINT, choice BIGINT, rollout_id VARCHAR, attempt_id VARCHAR, policy VARCHAR, "
    "sequence_id VARCHAR, place INTEGER, prompt_tokens INTEGER, tokens INTEGER, reason VARCHAR, drift_position INTEGER, drift_tokens INTEGER",
    "agent_prompts": "rollout_id VARCHAR, attempt_id VARCHAR, prompt_key UBIGINT, agent VARCHAR, by_ids BOOLEAN, calls BIGINT",
    "candidate_agents": "call_id BIGINT, rollout_id VARCHAR, attempt_id VARCHAR, agent VARCHAR",
    "bad_rewards": "rollout_id VARCHAR, attempt_id VARCHAR, span_id VARCHAR, name VARCHAR, value DOUBLE, reason VARCHAR",
    "unmatched_settings": "setting VARCHAR, given VARCHAR, meaning VARCHAR",
    "policy_overlaps": "agent VARCHAR, policy VARCHAR, agent_match VARCHAR, other_policy VARCHAR, other_match VARCHAR",
    "advantages": "policy VARCHAR, group_id VARCHAR, rollout_id VARCHAR, attempt_id VARCHAR, agent VARCHAR, step BIGINT, "
    "reward DOUBLE, return DOUBLE, group_rollouts BIGINT, group_mean DOUBLE, group_std DOUBLE, fell_back BOOLEAN, "
    "advantage DOUBLE, left_out VARCHAR",
    "sequences": "sequence_id VARCHAR, policy VARCHAR, group_id VARCHAR, rollout_id VARCHAR, attempt_id VARCHAR, "
    "call_ids VARCHAR[], policy_version VARCHAR, prompt_length INTEGER, token_ids INTEGER[], loss_mask UTINYINT[], "
    "logprobs FLOAT[], reward DOUBLE, advantage DOUBLE, advantages FLOAT[], tokenized BOOLEAN",
    "training_rows": "policy VARCHAR, step INTEGER, sequence_id VARCHAR, logprobs FLOAT[], entropies FLOAT[], ratios FLOAT[], "
    "loss_weights FLOAT[], clipped BOOLEAN[]",
    "token_scores": "policy VARCHAR, name VARCHAR, by_sql BOOLEAN, sequence_id VARCHAR, numbers FLOAT[]",
    "finetune_rollouts": "source_run VARCHAR, source_epoch BIGINT, rollout_id VARCHAR, began_ns BIGINT, left_out VARCHAR",
    "exclusions": "call_id BIGINT, choice BIGINT, rollout_id VARCHAR, attempt_id VARCHAR, span_id VARCHAR, policy VARCHAR, "
    "agent VARCHAR, reason VARCHAR",
}
DERIVED = tuple(_COLUMNS)
# Table → (column, type), `run` and `epoch` among them.
COLUMNS: dict[str, list[tuple[str, str]]] = {
    name: [(c.split(" ", 1)[0], c.split(" ", 1)[1]) for c in f"run VARCHAR, epoch BIGINT, {columns}".split(", ")]
    for name, columns in _COLUMNS.items()
}
# Table → the select list of its empty form.
EMPTY = {name: ", ".join(f"NULL::{kind} AS {column}" for column, kind in columns) for name, columns in COLUMNS.items()}
