"""What must not decide whose a call is: ids that repeat, tools, links, texts, and times that are not known."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.lake_maker import Attempt, derived, table
from tests.tree_scenarios import ONE_ID, Scenarios, Tree, ask, place

scenario = Scenarios()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    return scenario.trees(tmp_path_factory.mktemp("hierarchy"))


def call(a: Attempt, span_id: str, at: tuple[float, float], parent: str | None = None, **columns: Any) -> str:
    return a.call([1, len(a.rows)], [2], at, parent, span_id=span_id, **columns)


# Tools


@scenario
def agent_as_tool(a: Attempt) -> None:
    a.agent("orchestrator", (0.0, 1.0), "root", span_id="orchestrator")
    call(a, "asks", (0.1, 0.2), "orchestrator", output_messages=ask("call_1"))
    a.span("ask_writer", (0.2, 0.5), "orchestrator", op="tool", tool_call_id="call_1", agent_name="writer")
    call(a, "lost", (0.3, 0.4))


@scenario
def agent_as_tool_of_a_lost_call(a: Attempt) -> None:
    a.agent("orchestrator", (0.0, 1.0), "root", span_id="orchestrator")
    call(a, "asks", (0.1, 0.15), output_messages=ask("call_1"))
    a.span("ask_writer", (0.25, 0.5), "orchestrator", op="tool", tool_call_id="call_1", agent_name="writer")


def test_a_tool_that_is_another_agent_does_not_name_the_call_that_asked_for_it(trees: dict[str, Tree]) -> None:
    tree = trees["agent_as_tool"]
    assert place(tree, "asks") == ("orchestrator", "declared", "orchestrator")
    assert tree["asks"]["agent_path"] == "orchestrator"
    assert place(trees["agent_as_tool_of_a_lost_call"], "asks") == ("orchestrator", "time", "orchestrator")


@scenario
def tool_id_of_two_conversations(a: Attempt) -> None:
    a.agent("worker", (0.1, 0.9), "root", span_id="worker")
    call(a, "asks", (0.3, 0.41), "worker", output_messages=ask("functions.calc:0"))
    a.agent("planner", (0.1, 0.9), "root", span_id="planner")
    a.span("calc", (0.15, 0.2), op="tool", tool_call_id="functions.calc:0", agent_name="planner", span_id="early")
    a.span("calc", (0.5, 0.6), "planner", op="tool", tool_call_id="functions.sum:0", span_id="declared")
    call(a, "named", (0.3, 0.4), output_messages=ask("functions.sum:0"), agent_name="worker")


def test_a_tool_call_id_does_not_overrule_what_is_declared(trees: dict[str, Tree]) -> None:
    tree = trees["tool_id_of_two_conversations"]
    assert (tree["asks"]["agent"], tree["asks"]["agent_path"]) == ("worker", "worker")
    assert place(tree, "early") == ("root", "own_identity", "planner"), "it ran before the call"
    assert place(tree, "declared") == ("planner", "declared", "planner")


@scenario
def tool_id_of_two_agents(a: Attempt) -> None:
    for name in ("planner", "worker"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
        step = a.span("step", (0.4, 0.6), name)
        a.span("calc", (0.5, 0.6), step, op="tool", tool_call_id="functions.calc:0")
    call(a, "asks", (0.2, 0.3), output_messages=ask("functions.calc:0"))


@scenario
def tool_seen_twice(a: Attempt) -> None:
    for name in ("planner", "worker"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
    outer = a.span("calc", (0.5, 0.6), "worker", op="tool", tool_call_id="call_1")
    a.span("calc", (0.51, 0.59), outer, op="tool", tool_call_id="call_1")
    call(a, "asks", (0.2, 0.3), output_messages=ask("call_1"))


def test_a_tool_call_id_that_tools_of_two_agents_bear_decides_nothing(trees: dict[str, Tree]) -> None:
    assert place(trees["tool_id_of_two_agents"], "asks") == ("root", "ambiguous", None)
    assert place(trees["tool_seen_twice"], "asks") == ("worker", "tool_call", "worker")


# Ids that repeat


@scenario
def seeded_parallel_agents(a: Attempt) -> None:
    a.agent("planner", (0.1, 0.9), "root", span_id=ONE_ID)
    a.agent("worker", (0.11, 0.9), "root", span_id=ONE_ID)
    call(a, "one", (0.3, 0.4), ONE_ID)
    call(a, "two", (0.3, 0.41), ONE_ID)
    a.span(span_id="named", parent=ONE_ID, at=(0.95, 0.99), agent_name="own")


@scenario
def seeded_steps_of_parallel_agents(a: Attempt) -> None:
    """The spans that repeat the id have no names; what is above them has."""
    for name in ("planner", "worker"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
        inner = a.span("inner", (0.15, 0.85), name, span_id=f"{name}'s")
        a.span("step", (0.2, 0.8), inner, span_id=ONE_ID)
    call(a, "call", (0.3, 0.4), ONE_ID)


@scenario
def seeded_twice_in_a_row(a: Attempt) -> None:
    """Two levels: the inner spans repeat an id too, and time does not tell which of the outer ones is theirs."""
    a.agent("planner", (0.1, 0.5), "root", span_id=ONE_ID)
    a.agent("worker", (0.3, 0.9), "root", span_id=ONE_ID)
    a.span("first", (0.2, 0.45), ONE_ID, span_id="b")
    a.span("second", (0.4, 0.8), ONE_ID, span_id="b")
    call(a, "call", (0.42, 0.44), "b")


def test_of_open_spans_of_one_id_and_several_agents_none_is_chosen(trees: dict[str, Tree]) -> None:
    tree = trees["seeded_parallel_agents"]
    for span in ("one", "two"):
        assert place(tree, span) == ("root", "ambiguous", None)
        assert (tree[span]["candidates"], tree[span]["ambiguous"]) == (2, True)
        assert tree[span]["declared_parent_id"] == ONE_ID
    assert place(tree, "named") == ("root", "own_identity", "own")
    assert not any(row["op"] == "missing" for row in tree.values()), "the parent did come, twice"
    assert trees["seeded_steps_of_parallel_agents"]["call"]["method"] == "ambiguous"
    assert trees["seeded_twice_in_a_row"]["call"]["method"] == "ambiguous"


@scenario
def written_twice(a: Attempt) -> None:
    """An exporter that sends a span when it begins and when it ends."""
    for columns in ({"end_ns": None}, {}):
        a.agent("planner", (0.1, 0.9), "root", span_id=ONE_ID, **columns)
        a.span("step", (0.2, 0.8), ONE_ID, span_id="step", **columns)
    a.agent("worker", (0.1, 0.9), "root", span_id="worker")
    call(a, "call", (0.3, 0.4), "step")


@scenario
def steps_of_one_agent(a: Attempt) -> None:
    a.agent("planner", (0.1, 0.9), "root", span_id="planner")
    a.agent("worker", (0.1, 0.9), "root", span_id="worker")
    for number in range(3):
        a.span("step", (0.2, 0.8), a.span("turn", (0.15 + number / 100, 0.85), "planner"), span_id=ONE_ID)
    call(a, "call", (0.3, 0.4), ONE_ID)


def test_spans_of_one_id_and_one_agent_leave_no_doubt_of_it(trees: dict[str, Tree]) -> None:
    assert place(trees["written_twice"], "call") == ("step", "declared", "planner")
    assert place(trees["steps_of_one_agent"], "call") == (ONE_ID, "declared", "planner")


@scenario
def id_of_the_parent(a: Attempt) -> None:
    a.agent("planner", (0.1, 0.9), "root", span_id=ONE_ID)
    a.span("child", (0.2, 0.3), ONE_ID, span_id=ONE_ID)


def test_a_span_may_have_the_id_of_its_parent(trees: dict[str, Tree]) -> None:
    tree = trees["id_of_the_parent"]
    assert tree["child"]["parent_node"] == tree["planner.run"]["node"]
    assert place(tree, "planner.run") == ("root", "declared", "planner")


def test_of_spans_of_one_id_the_earliest_that_was_open_is_the_parent(tmp_path: Path) -> None:
    made = Attempt("r.0")
    made.root(mode="evaluate", at=(0.0, 99.0))
    rng = random.Random(7)
    bearers = []
    for number in range(60):
        start = rng.randint(0, 400) / 10
        at = (start, start + rng.randint(0, 60) / 10)
        trace = rng.choice("123") * 32
        made.span(f"x{number}", at, span_id=ONE_ID, trace_id=trace)
        bearers.append((at[0], trace, number, at[1] if number % 9 else 1e9))
        if number % 9 == 0:
            made.rows[-1]["end_ns"] = None
    asked = {}
    for number in range(200):
        start, trace = rng.randint(0, 500) / 10, rng.choice("1234") * 32
        made.span("y", (start, start), ONE_ID, span_id=f"y{number}", trace_id=trace)
        asked[f"y{number}"] = (start, trace)
    lake, epoch = derived(tmp_path, made.rows, mode="evaluate")
    rows = table(lake, epoch, "span_tree")
    by_node = {row["node"]: row for row in rows}
    for row in rows:
        if row["name"] != "y":
            continue
        start, trace = asked[row["span_id"]]
        scope = [b for b in bearers if b[1] == trace] or bearers
        open_then = [b for b in scope if b[0] <= start <= b[3]] or scope
        chosen = by_node[row["parent_node"]]
        assert chosen["start_ns"] == round((100 + min(open_then)[0]) * 1e9)
        assert int(chosen["name"][1:]) in {b[2] for b in open_then}


# Texts

SAID = {
    "input_messages": '[{"role": "user", "content": "hi"}]',
    "output_messages": '[{"role": "assistant", "content": "yes"}]',
}


def same_words(a: Attempt, model: str | None, attributes: list[tuple[str, str]] | None = None) -> None:
    for name in ("planner", "worker"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
    a.span("chat", (0.3, 0.4), "planner", op="llm", span_id="told", model=model, attributes=attributes or [], **SAID)
    call(a, "gateway", (0.3, 0.41), model="policy-v0003", **SAID)


@scenario
def words_of_another_model(a: Attempt) -> None:
    same_words(a, "gpt-4o")


@scenario
def words_of_the_policy(a: Attempt) -> None:
    same_words(a, "policy")


@scenario
def words_by_a_provider(a: Attempt) -> None:
    same_words(a, "openai/Policy-2026-01-31")


@scenario
def words_of_a_requested_model(a: Attempt) -> None:
    same_words(a, "served", [("gen_ai.request.model", "policy")])


@scenario
def words_of_no_model(a: Attempt) -> None:
    same_words(a, None)


def test_calls_of_two_models_that_said_the_same_are_two(trees: dict[str, Tree]) -> None:
    tree = trees["words_of_another_model"]
    assert place(tree, "gateway") == ("root", "ambiguous", None)
    assert tree["told"]["twin_of"] is None


@pytest.mark.parametrize("name", ["of_the_policy", "by_a_provider", "of_a_requested_model", "of_no_model"])
def test_a_model_has_several_names(trees: dict[str, Tree], name: str) -> None:
    assert place(trees[f"words_{name}"], "gateway") == ("planner", "twin", "planner")


# Links


def link(span_id: str) -> str:
    return f'[{{"trace_id": "x", "span_id": "{span_id}"}}]'


@scenario
def receiver(a: Attempt) -> None:
    a.agent("A", (0.1, 0.3), "root", span_id="A")
    a.span("send", (0.2, 0.25), "A", span_id="send")
    a.span("handed on", (0.2, 0.25), span_id="orphan")
    a.agent("B", (0.35, 0.9), "root", span_id="B")
    call(a, "in B", (0.5, 0.6), links=link("send"))
    call(a, "by an orphan", (0.5, 0.6), links=link("orphan"))
    call(a, "in nobody", (1.5, 1.6), links=link("send"))
    call(a, "in A", (0.2, 0.22), links=link("send"))


@scenario
def receivers_in_parallel(a: Attempt) -> None:
    for name in ("A", "B"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
    a.span("send", (0.2, 0.25), "A", span_id="send")
    call(a, "call", (0.5, 0.6), links=link("send"))
    a.agent("C", (0.4, 0.9), "root", span_id="C")
    a.agent("D", (0.4, 0.45), "root", span_id="D")
    a.span("send", (0.41, 0.42), "D", span_id="done")
    call(a, "past", (0.6, 0.7), links=link("done"))


def test_a_link_gives_the_senders_agent_only_where_its_time_holds_the_span(trees: dict[str, Tree]) -> None:
    tree = trees["receiver"]
    assert place(tree, "in B") == place(tree, "by an orphan") == ("B", "time", "B")
    assert place(tree, "in nobody") == ("root", "unplaced", None)
    assert place(tree, "in A") == ("send", "link", "A")
    tree = trees["receivers_in_parallel"]
    assert place(tree, "call") == ("send", "link", "A")
    assert (tree["past"]["method"], tree["past"]["candidates"]) == ("ambiguous", 3)


# Times


@scenario
def unknown_start(a: Attempt) -> None:
    a.agent("A", (0.1, 0.9), "root", span_id="A")
    a.agent("B", (0.1, 0.9), "root", span_id="B", start_ns=None)
    call(a, "in both", (0.3, 0.4))
    call(a, "before A", (0.02, 0.03))
    call(a, "after both", (1.3, 1.4))


def test_an_agent_of_unknown_start_may_hold_what_came_before_its_end(trees: dict[str, Tree]) -> None:
    tree = trees["unknown_start"]
    assert place(tree, "in both") == ("root", "ambiguous", None)
    assert place(tree, "before A") == ("B", "time", "B")
    assert tree["after both"]["method"] == "unplaced"


# Attempts


def test_an_attempt_that_does_not_say_how_it_ended_is_left_out_and_another_counts(tmp_path: Path) -> None:
    rows = []
    for rollout, attempt, outcome, end in (("r.0", "a", None, 1.0), ("r.1", "a", None, 1.0), ("r.1", "b", "ok", 2.0)):
        made = Attempt(rollout, attempt)
        made.root(at=(0.0, end))
        made.rows[0]["outcome"] = outcome
        made.call([1], [2])
        made.reward(1.0)
        rows += made.rows
    lake, epoch = derived(tmp_path, rows)
    scored = {
        (r["rollout_id"], r["attempt_id"]): (r["counts"], r["left_out"]) for r in table(lake, epoch, "scored_attempts")
    }
    assert scored == {
        ("r.0", "a"): (False, "no_outcome"),
        ("r.1", "a"): (False, "no_outcome"),
        ("r.1", "b"): (True, None),
    }
