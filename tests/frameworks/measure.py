"""Runs an example behind the real server, as rollouts, and counts in the lake what became of its calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_core.doctor.trial import Trial, try_agent
from lightning_core.lake import catalog
from tests.frameworks.cases import PLANNER, TASKS, Case
from tests.frameworks.scripted_vllm import ScriptedVllm
from tests.gateway_rig import Rig

_CALLS = """
    SELECT calls.response_id, calls.untrainable, calls.input_messages, policy_calls.agent, policy_calls.left_out,
        policy_calls.prompt_tokens > 0 AND policy_calls.response_tokens > 0 AS has_ids
    FROM calls
    LEFT JOIN policy_calls ON policy_calls.rollout_id = calls.rollout_id
        AND policy_calls.response_id = calls.response_id AND policy_calls.run = calls.run
    WHERE calls.run = ? AND calls.rollout_id = ? AND calls.recorded_by = 'gateway'
"""
_RECORDS = """
    SELECT count(*) FILTER (recorded_by = 'instrumentation'), count(*) FILTER (twin_of IS NOT NULL),
        count(*) FILTER (twin_of IS NULL AND recorded_by = 'instrumentation')
    FROM calls WHERE run = ? AND rollout_id = ?
"""
_TOOLS = "SELECT tool_name, failed, count(*) FROM tool_calls WHERE run = ? AND rollout_id = ? AND tool_name <> 'final_answer' GROUP BY ALL"
_STATE = "SELECT outcome, error, output, reward FROM rollouts WHERE run = ? AND rollout_id = ?"


@dataclass
class Measured:
    """Counts of one rollout. `made_by` is what the system messages say, `given_to` what the SQL concluded."""

    outcome: str
    error: str | None
    reward: float | None
    made_by: dict[str | None, int]
    calls: int
    with_ids: int
    untrainable: int
    right: int  # calls that went to the agent that made them
    wrong: int
    ambiguous: int
    trained: dict[str | None, int]  # by who made them
    instrumented: int  # LLM spans of the agent's own
    merged: int  # of the records of calls, those that another stands for
    elsewhere: int  # calls that no record of the gateway stands for
    tools: dict[str, int] = field(default_factory=dict)
    failed_tools: dict[str, int] = field(default_factory=dict)


def measure(server: Rig, case: Case) -> dict[str, Measured]:
    """Run the case's tasks one after another: sequential use and parallel use."""
    upstream = ScriptedVllm()
    server.upstream = server.on_loop(upstream.start())
    server.route(version="v0000")
    try:
        trial = try_agent(server.handle, case.settings(server.home), TASKS)
    finally:
        server.on_loop(upstream.stop())
    return {variant: _measured(trial, case, variant) for variant in TASKS}


def _measured(trial: Trial, case: Case, variant: str) -> Measured:
    with catalog.connect(trial.epoch.lake.root) as con:
        mine = [trial.epoch.run, f"{trial.epoch.run}.{variant}"]
        calls = con.sql(_CALLS, params=mine).to_arrow_table().to_pylist()
        instrumented, merged, elsewhere = con.execute(_RECORDS, mine).fetchone() or (0, 0, 0)
        tools = con.execute(_TOOLS, mine).fetchall()
        outcome, error, _, reward = con.execute(_STATE, mine).fetchone() or ("missing", None, None, None)
    made_by = Counter(_made_by(call) for call in calls)
    known = [call for call in calls if call["left_out"] != "ambiguous_agent"]
    right = sum((call["agent"] or None) == (_made_by(call) if case.named else None) for call in known)
    return Measured(
        outcome=outcome,
        error=error,
        reward=reward,
        made_by=dict(made_by),
        calls=len(calls),
        with_ids=sum(bool(call["has_ids"]) for call in calls),
        untrainable=sum(call["untrainable"] is not None for call in calls),
        right=right,
        wrong=len(known) - right,
        ambiguous=len(calls) - len(known),
        trained=dict(Counter(_made_by(call) for call in calls if call["left_out"] is None)),
        instrumented=instrumented,
        merged=merged,
        elsewhere=elsewhere,
        tools={tool: n for tool, failed, n in tools if not failed},
        failed_tools={tool: n for tool, failed, n in tools if failed},
    )


def _made_by(call: dict[str, Any]) -> str | None:
    messages = call["input_messages"] or ""
    if '"system"' not in messages and '"developer"' not in messages:
        return None
    return "planner" if PLANNER in messages else "executor"


def plain(measured: dict[str, Measured]) -> dict[str, Any]:
    return {variant: asdict(one) for variant, one in measured.items()}
