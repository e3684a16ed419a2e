"""Whose a span is: several agents at a time, one after another, called back, and named by rules of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_core.config import AgentRule
from tests.lake_maker import Attempt, derived, table
from tests.tree_scenarios import Scenarios, Tree, gateway, place

scenario = Scenarios()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    return scenario.trees(
        tmp_path_factory.mktemp("hierarchy"), agent_rules=[AgentRule(key="crew.role", pattern=r"^role:(\w+)")]
    )


@scenario
def parallel_workers(a: Attempt) -> None:
    a.agent("boss", (0.1, 5.0), "root", span_id="boss")
    for number in range(4):
        a.agent("worker", (0.2 + number / 10, 3.0 + number), "boss", span_id=f"w{number}")
    gateway(a, "in four", (1.0, 1.1))
    gateway(a, "in one", (5.5, 5.6))
    gateway(a, "in the boss", (0.12, 0.14))


def test_of_several_spans_of_one_agent_the_agent_is_certain_and_the_span_is_not(trees: dict[str, Tree]) -> None:
    tree = trees["parallel_workers"]
    row = tree["in four"]
    assert (row["method"], row["candidates"], row["ambiguous"]) == ("same_name", 4, False)
    assert (row["parent_id"], row["agent"], row["agent_path"]) == ("boss", "worker", "boss/worker")
    assert place(tree, "in one") == ("w3", "time", "worker")
    assert place(tree, "in the boss") == ("boss", "time", "boss")


@scenario
def relay(a: Attempt) -> None:
    """Two workers, one after the other with an overlap: the call begins in the first one's time and outlives it."""
    a.agent("boss", (0.0, 5.0), "root", span_id="boss")
    a.agent("worker", (0.1, 2.0), "boss")
    a.agent("worker", (1.9, 4.0), "boss")
    gateway(a, "call", (1.0, 3.0))


def test_a_call_that_outlives_the_inner_agent_may_be_the_outer_ones(trees: dict[str, Tree]) -> None:
    assert place(trees["relay"], "call") == ("root", "ambiguous", None)


@scenario
def parallel_agents(a: Attempt) -> None:
    a.agent("boss", (0.0, 9.0), "root")
    for number, name in enumerate(("planner", "coder", "critic")):
        agent = a.agent(name, (0.1 * (number + 1), 5.0 + number), "root", span_id=name)
        a.agent("helper", (1.0, 2.0), agent, span_id=f"{name}'s helper")
    gateway(a, "in all", (3.0, 3.1))
    gateway(a, "in helpers", (1.2, 1.3))
    gateway(a, "around a helper", (0.5, 2.5))
    a.span(span_id="under", parent="in all", at=(3.01, 3.05))
    a.span(span_id="named", parent="in all", at=(3.01, 3.05), agent_name="own", op="llm", response_id="r9")


def test_parallel_agents_are_told_apart_by_nothing(trees: dict[str, Tree]) -> None:
    tree = trees["parallel_agents"]
    rows = [tree[s] for s in ("in all", "in helpers", "around a helper")]
    assert [(r["method"], r["candidates"], r["ambiguous"], r["agent"]) for r in rows] == [
        ("ambiguous", 4, True, None),
        ("ambiguous", 4, True, None),
        ("ambiguous", 4, True, None),
    ]


def test_what_lies_under_an_ambiguous_span_is_ambiguous_until_a_name(trees: dict[str, Tree]) -> None:
    tree = trees["parallel_agents"]
    assert (tree["under"]["ambiguous"], tree["under"]["method"]) == (True, "declared")
    assert (tree["named"]["ambiguous"], tree["named"]["agent"]) == (False, "own")


@scenario
def handoff(a: Attempt) -> None:
    """As the OpenAI Agents do it: a tool of the first, then the second beside the first."""
    a.agent("triage", (0.1, 0.4), "root", span_id="triage")
    a.span("transfer_to_refunds", (0.3, 0.39), "triage", op="tool", tool_name="transfer_to_refunds", span_id="tool")
    a.agent("refunds", (0.45, 0.9), "root", span_id="refunds")
    gateway(a, "before", (0.2, 0.25))
    gateway(a, "after", (0.5, 0.6))


def test_a_handoff_ends_one_agent_and_begins_the_other(trees: dict[str, Tree]) -> None:
    tree = trees["handoff"]
    assert [tree[s]["agent"] for s in ("before", "tool", "after")] == ["triage", "triage", "refunds"]


@scenario
def reentrant(a: Attempt) -> None:
    a.agent("a", (0.1, 0.9), "root", span_id="a1")
    a.agent("b", (0.2, 0.8), "a1", span_id="b1")
    a.agent("a", (0.3, 0.7), "b1", span_id="a2")
    gateway(a, "call", (0.4, 0.5))
    a.span(span_id="step", parent="a2", at=(0.4, 0.5), agent_name="a")


def test_an_agent_that_is_called_back_is_in_its_own_path(trees: dict[str, Tree]) -> None:
    tree = trees["reentrant"]
    assert (tree["call"]["parent_id"], tree["call"]["agent_path"]) == ("a2", "a/b/a")
    assert tree["step"]["agent_path"] == "a/b/a", "a span that says the agent's name again begins no new one"


@scenario
def ping_pong(a: Attempt) -> None:
    parent = "root"
    for number in range(100):
        parent = a.agent("ping" if number % 2 else "pong", (number / 100, 9.0), parent, span_id=f"p{number}")


def test_a_path_has_32_names_at_most(trees: dict[str, Tree]) -> None:
    tree = trees["ping_pong"]
    assert tree["p31"]["agent_path"] == "/".join(["pong", "ping"] * 16)
    assert tree["p99"]["agent_path"] == "…/" + "/".join(["pong", "ping"] * 16)


@scenario
def own_identity(a: Attempt) -> None:
    """Parallel agents whose spans have lost their parents: they enclose each other by accident."""
    a.agent("long", (0.1, 0.9), span_id="long")
    a.agent("short", (0.2, 0.8), span_id="short")
    wrapper = a.span(span_id="wrapper", at=(0.15, 0.85))
    a.agent("wrapped", (0.3, 0.7), wrapper, span_id="wrapped")


def test_agents_are_not_nested_by_time(trees: dict[str, Tree]) -> None:
    tree = trees["own_identity"]
    assert place(tree, "short") == ("root", "own_identity", "short")
    assert place(tree, "wrapper") == ("root", "unplaced", None)
    assert tree["wrapped"]["agent_path"] == "wrapped"


@scenario
def named_call(a: Attempt) -> None:
    a.agent("one", (0.1, 0.9), "root")
    a.agent("two", (0.1, 0.9), "root")
    gateway(a, "call", (0.2, 0.3), agent_name="one")


def test_a_call_that_names_its_agent_needs_no_guess(trees: dict[str, Tree]) -> None:
    assert place(trees["named_call"], "call") == ("root", "own_identity", "one")


@scenario
def user_rule(a: Attempt) -> None:
    a.span(span_id="named", attributes=[("crew.role", "role:writer")], agent_name="overruled", at=(0.1, 0.9))
    a.span(span_id="other", attributes=[("crew.role", "writer")], agent_name="stays", at=(0.1, 0.9))


def test_rules_of_the_settings_come_before_what_ingest_knew(trees: dict[str, Tree]) -> None:
    tree = trees["user_rule"]
    assert [tree[s]["agent"] for s in ("named", "other")] == ["writer", "stays"]


def test_a_rule_that_names_nobody_and_a_pattern_that_takes_nobody_are_told(tmp_path: Path) -> None:
    attempts = []
    for number in range(2):
        attempt = Attempt(f"r.{number}", f"a{number}")
        attempt.root()
        attempt.agent("solver", span_id="agent")
        attempt.call([1], [2], parent="agent")
        attempt.reward(number)
        attempts.append(attempt)
    rules = [AgentRule(key="crew.role"), AgentRule(source="span_name", pattern=r"^(\w+)\.run$")]
    rows = [row for a in attempts for row in a.rows]
    for spans_a_bucket in (1, 1000):
        home = tmp_path / str(spans_a_bucket)
        lake, epoch = derived(home, rows, agent_match="critic", agent_rules=rules, spans_a_bucket=spans_a_bucket)
        assert [(r["setting"], r["given"], r["meaning"]) for r in table(lake, epoch, "unmatched_settings")] == [
            ("agent_rules.0", "crew.role", "no span has an agent's name there"),
            (
                "policies.policy.agent_match",
                "critic",
                "the policy was called, and never by such an agent; it was by: solver",
            ),
        ]
