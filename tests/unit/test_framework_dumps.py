"""What real frameworks emit (examples/frameworks, tests/data/frameworks) becomes calls, agents and tools in our SQL.

The gateway saw every request, so whose call it was is known: the system message says it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightning_core.lake.decode import Decoder
from tests.frameworks import dump
from tests.frameworks.cases import PLANNER
from tests.lake_maker import Attempt, derived, table

# A planner looks a topic up and answers. An executor divides by zero, which fails, divides, and answers.
ONE_EXECUTOR: dict[str | None, int] = {"planner": 2, "executor": 3}
TWO_EXECUTORS: dict[str | None, int] = {"planner": 2, "executor": 6}
GATEWAY = "lightning_core.server"  # as it called itself when these spans were recorded
Tools = dict[tuple[str, bool], int]  # (tool, whether it failed) → spans


@dataclass(frozen=True)
class Expected:
    """Calls by the agent that made them, tool spans, and how many calls several agents could have made."""

    calls: dict[str | None, int]
    tools: Tools
    ambiguous: int = 0


def tools(executors: int = 1, **more: int) -> Tools:
    found = {("lookup", False): 1, ("divide", True): executors, ("divide", False): executors}
    return found | {(name, False): spans for name, spans in more.items()}


EXPECTED = {
    ("agent_framework", "sequential"): Expected(ONE_EXECUTOR, tools()),
    ("agent_framework", "parallel"): Expected(TWO_EXECUTORS, tools(2)),
    ("autogen", "sequential"): Expected(ONE_EXECUTOR, tools()),
    # No LLM span at all: tool call ids tell whose a call was, and where it asked for none, its prompt.
    ("autogen", "parallel"): Expected(TWO_EXECUTORS, tools(2)),
    # Each tool call is a span of OpenInference with a span of AutoGen in it, and only the inner one knows of the failure.
    ("autogen_openinference", "sequential"): Expected(
        ONE_EXECUTOR, {("lookup", False): 2, ("divide", True): 1, ("divide", False): 3}
    ),
    ("autogen_openinference", "parallel"): Expected(
        TWO_EXECUTORS, {("lookup", False): 2, ("divide", True): 2, ("divide", False): 6}
    ),
    ("crewai", "sequential"): Expected(ONE_EXECUTOR, tools()),
    ("crewai", "parallel"): Expected(TWO_EXECUTORS, tools(2)),
    ("langgraph", "sequential"): Expected(ONE_EXECUTOR, tools()),
    ("langgraph", "parallel"): Expected(ONE_EXECUTOR, tools()),
    ("openai_client", "sequential"): Expected({None: 4}, {}),
    ("openai_client", "parallel"): Expected({None: 8}, {}),
    ("openai_agents_genai", "sequential"): Expected(ONE_EXECUTOR, tools()),
    ("openai_agents_genai", "parallel"): Expected(TWO_EXECUTORS, tools(2)),
    ("openai_agents_openinference", "sequential"): Expected(ONE_EXECUTOR, tools()),
    ("openai_agents_openinference", "parallel"): Expected(TWO_EXECUTORS, tools(2)),
    ("openai_agents_responses", "sequential"): Expected(ONE_EXECUTOR, tools()),
    ("openai_agents_responses", "parallel"): Expected(TWO_EXECUTORS, tools(2)),
    ("pydantic_ai", "sequential"): Expected(ONE_EXECUTOR, tools()),
    ("pydantic_ai", "parallel"): Expected(TWO_EXECUTORS, tools(2)),
    ("smolagents", "sequential"): Expected(ONE_EXECUTOR, tools(final_answer=2)),
    ("smolagents", "parallel"): Expected(TWO_EXECUTORS, tools(2, final_answer=3)),
}
Rollouts = dict[str, "Rollout"]
every_dump = pytest.mark.parametrize(("name", "variant"), EXPECTED)


@dataclass
class Rollout:
    spans: list[dict[str, Any]]
    calls: list[dict[str, Any]]  # policy_calls with `agent_match: executor`
    merges: list[dict[str, Any]]
    made_by: dict[str, str | None]  # response id → agent, as the gateway saw it


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rollout]:
    """`<name>.<variant>` → Rollout; all dumps are one epoch."""
    records = [record for name in dump.frameworks() for record in dump.load(name)]
    spans, rejected = Decoder().decode([(place, place + 1, record) for place, record in enumerate(records)])
    assert not rejected
    by_rollout: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in spans.to_pylist():
        by_rollout[row["rollout_id"]].append(row)
    for rollout, rows in by_rollout.items():
        rewarded = Attempt(rollout, "a1")
        rewarded.reward(1.0, start_ns=max(row["start_ns"] for row in rows))
        rows += rewarded.rows
    lake, epoch = derived(
        tmp_path_factory.mktemp("lake"), [row for rows in by_rollout.values() for row in rows], agent_match="executor"
    )
    calls, merges = (_by_rollout(table(lake, epoch, name)) for name in ("policy_calls", "merges"))
    return {
        rollout: Rollout(
            rows,
            calls[rollout],
            merges[rollout],
            {row["response_id"]: _made_by(row["input_messages"]) for row in rows if row["sender"] == "gateway"},
        )
        for rollout, rows in by_rollout.items()
    }


def test_a_failing_tool_costs_once_however_many_instrumentations_saw_it(tmp_path: Path) -> None:
    records = dump.load("autogen_openinference")
    spans, _ = Decoder().decode([(place, place + 1, record) for place, record in enumerate(records)])
    rule = {"name": "failed", "value": -0.1, "op": "tool", "status": "error"}
    anything = {"name": "any", "value": 0.01, "op": "tool"}
    lake, epoch = derived(tmp_path, spans.to_pylist(), air=[rule, anything])
    rewards = {row["rollout_id"]: row["air"] for row in table(lake, epoch, "rollout_rewards")}
    assert rewards == {
        "autogen_openinference.sequential": pytest.approx(-0.1 + 3 * 0.01),
        "autogen_openinference.parallel": pytest.approx(-0.2 + 5 * 0.01),
    }


def _by_rollout(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for row in rows:
        found[row["rollout_id"]].append(row)
    return found


def _made_by(messages: str) -> str | None:
    if '"role":"system"' not in messages:
        return None
    return "planner" if PLANNER in messages else "executor"


def test_every_framework_has_its_dump() -> None:
    assert {name for name, _ in EXPECTED} == set(dump.frameworks())
    assert all((dump.DUMPS / f"{name}.jsonl.gz").stat().st_size < 100_000 for name in dump.frameworks())


@every_dump
def test_every_llm_call_is_there_once_with_its_token_ids(rollouts: Rollouts, name: str, variant: str) -> None:
    rollout = rollouts[f"{name}.{variant}"]
    assert Counter(rollout.made_by.values()) == EXPECTED[name, variant].calls
    assert sorted(str(call["response_id"]) for call in rollout.calls) == sorted(rollout.made_by)
    assert all(call["prompt_tokens"] and call["response_tokens"] for call in rollout.calls)


@every_dump
def test_a_call_goes_to_the_agent_that_made_it_or_is_ambiguous(rollouts: Rollouts, name: str, variant: str) -> None:
    rollout = rollouts[f"{name}.{variant}"]
    calls = [call for call in rollout.calls if call["policy"] is not None]
    known = [call for call in calls if call["left_out"] != "ambiguous_agent"]
    assert {call["response_id"]: call["agent"] for call in known} == {
        call["response_id"]: rollout.made_by[call["response_id"]] for call in known
    }
    assert len(calls) - len(known) == EXPECTED[name, variant].ambiguous


@every_dump
def test_agent_match_takes_the_executors_calls_and_no_other(rollouts: Rollouts, name: str, variant: str) -> None:
    rollout = rollouts[f"{name}.{variant}"]
    trained = [rollout.made_by[call["response_id"]] for call in rollout.calls if call["left_out"] is None]
    assert set(trained) <= {"executor"}
    ambiguous = [rollout.made_by[c["response_id"]] for c in rollout.calls if c["left_out"] == "ambiguous_agent"]
    made = EXPECTED[name, variant].calls.get("executor", 0)
    assert len(trained) == made - ambiguous.count("executor")


@pytest.mark.parametrize("name", sorted({name for name, _ in EXPECTED} - {"openai_client", "smolagents"}))
def test_the_turns_of_an_agent_are_one_sequence(rollouts: Rollouts, name: str) -> None:
    merges = rollouts[f"{name}.sequential"].merges
    assert len(merges) == ONE_EXECUTOR["executor"]
    assert len({merge["sequence_id"] for merge in merges}) == 1


def test_smolagents_writes_its_history_anew(rollouts: Rollouts) -> None:
    """A call that failed is not repeated in the next prompt, and the others are repeated as text."""
    merges = rollouts["smolagents.sequential"].merges
    assert len({merge["sequence_id"] for merge in merges}) == len(merges) == ONE_EXECUTOR["executor"]


@every_dump
def test_tool_calls_are_rows_and_so_are_their_failures(rollouts: Rollouts, name: str, variant: str) -> None:
    spans = [span for span in rollouts[f"{name}.{variant}"].spans if span["op"] == "tool"]
    found = Counter((span["tool_name"], span["status"] == "error") for span in spans)
    assert found == EXPECTED[name, variant].tools


def test_a_tool_is_no_agent(rollouts: Rollouts) -> None:
    """CrewAI calls its tools' spans `lookup.run`, as smolagents does its agents'."""
    spans = rollouts["crewai.sequential"].spans
    assert {span["agent_name"] for span in spans if span["op"] == "tool"} == {None}


def test_a_dump_tells_nothing_of_the_machine_it_was_made_on() -> None:
    for name in dump.frameworks():
        for _, _, record in [(0, 0, record) for record in dump.load(name)]:
            assert str(dump.ROOT).encode() not in record.body
            assert not any(word in record.body for word in (b"process.pid", b"host.name", b"process.executable"))
