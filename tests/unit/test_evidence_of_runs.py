"""Whose call it is by the tools that ran after it, by which agent's run it begins and ends, and by when its agents' spans came."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lake_maker import SECOND, Attempt
from tests.tree_scenarios import Scenarios, Tree, ask, gateway, place

pytestmark = pytest.mark.slow  # a lake

scenario = Scenarios()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    return scenario.trees(tmp_path_factory.mktemp("lake"))


def asks(a: Attempt, span_id: str, at: tuple[float, float], system: str, tool: str | None) -> None:
    """A call under a system message that asks for a tool, whose id nothing else bears."""
    said: dict[str, Any] = {"input_messages": json.dumps([{"role": "system", "content": system}])}
    gateway(a, span_id, at, **said | ({"output_messages": ask(f"id of {span_id}", tool)} if tool else {}))


def runs(a: Attempt, agent: str, at: float) -> None:
    a.span("search", (at, at + 0.1), agent, op="tool", tool_name="search")


def side_by_side(a: Attempt) -> None:
    for agent in ("writer", "critic"):
        a.agent(agent, (0.0, 5.0), "root", span_id=agent)
    asks(a, "writes", (1.0, 2.0), "You write.", "search")
    asks(a, "judges", (1.0, 2.5), "You judge.", None)


@scenario
def one_ran_it(a: Attempt) -> None:
    side_by_side(a)
    runs(a, "writer", 2.1)


def test_a_call_is_of_the_agent_that_ran_the_tool_it_asked_for(trees: dict[str, Tree]) -> None:
    tree = trees["one_ran_it"]
    assert place(tree, "writes") == ("writer", "content", "writer")
    assert place(tree, "judges") == ("critic", "content", "critic")  # as the other one has a prompt


@scenario
def one_inside_ran_it(a: Attempt) -> None:
    side_by_side(a)
    a.agent("tools", (2.05, 2.3), "writer", span_id="tools")
    runs(a, "tools", 2.1)


def test_an_agent_inside_that_runs_tools_runs_them_for_the_one_around_it(trees: dict[str, Tree]) -> None:
    assert place(trees["one_inside_ran_it"], "writes") == ("writer", "content", "writer")


@scenario
def one_beside_ran_it(a: Attempt) -> None:
    side_by_side(a)
    a.agent("tools", (2.05, 2.3), "root", span_id="tools")
    runs(a, "tools", 2.1)
    runs(a, "critic", 2.7)


@scenario
def ran_before(a: Attempt) -> None:
    side_by_side(a)
    runs(a, "writer", 0.5)


@pytest.mark.parametrize("name", ["one_beside_ran_it", "ran_before"])
def test_a_tool_that_another_may_have_run_or_that_ran_before_tells_nothing(trees: dict[str, Tree], name: str) -> None:
    assert place(trees[name], "writes") == place(trees[name], "judges") == ("root", "ambiguous", None)


@scenario
def gateway_behind(a: Attempt) -> None:
    """By 200 ms; equal clocks would fit the agents' times as well."""
    a.agent("writer", (0.0, 2.0), "root", span_id="writer")
    a.agent("critic", (2.05, 6.0), "root", span_id="critic")
    for row in a.rows[1:]:
        row["received_ns"] = row["end_ns"] + SECOND // 100 - SECOND // 5
    gateway(a, "judges", (1.9, 3.0))


def test_spans_that_came_before_they_ended_tell_that_the_gateways_clock_is_behind(trees: dict[str, Tree]) -> None:
    assert place(trees["gateway_behind"], "judges") == ("critic", "time", "critic")


@scenario
def another_process_ahead(a: Attempt) -> None:
    """Only a helper's clock is off: the gateway's is its agents'."""
    a.agent("writer", (0.0, 2.0), "root", span_id="writer")
    a.agent("critic", (2.05, 6.0), "root", span_id="critic")
    for row in a.rows[1:]:
        row |= {"received_ns": row["end_ns"] + SECOND // 100, "resource": [("process", "1")]}
    a.span("work", (0.5, 1.0), "writer", resource=[("process", "2")], received_ns=int(100.8 * SECOND))
    gateway(a, "writes", (1.9, 3.0))


def test_a_helpers_clock_is_not_taken_for_the_agents(trees: dict[str, Tree]) -> None:
    assert place(trees["another_process_ahead"], "writes")[2] == "writer"


def chat(a: Attempt) -> None:
    """Two that take turns, and one beside them that makes no call."""
    a.agent("manager", (0.0, 9.0), "root", span_id="manager")
    a.agent("writer", (1.0, 3.0), "root", span_id="writer")
    asks(a, "begins", (1.01, 1.5), "You write.", None)
    asks(a, "ends", (2.0, 2.98), "You write.", None)
    a.agent("critic", (3.1, 5.0), "root", span_id="critic")
    asks(a, "judges", (3.12, 4.98), "You judge.", None)


@scenario
def take_turns(a: Attempt) -> None:
    chat(a)


@scenario
def take_turns_where_a_span_is_lost(a: Attempt) -> None:
    chat(a)
    for at in (5.5, 6.0):
        a.span("step", (at, at + 0.1), "gone", op="other")


def test_calls_that_begin_and_end_an_agents_run_are_its(trees: dict[str, Tree]) -> None:
    tree = trees["take_turns"]
    assert place(tree, "begins") == place(tree, "ends") == ("writer", "content", "writer")
    assert place(tree, "judges") == ("critic", "content", "critic")


def test_they_may_be_another_ones_where_an_agents_span_may_be_lost(trees: dict[str, Tree]) -> None:
    tree = trees["take_turns_where_a_span_is_lost"]
    assert place(tree, "begins") == place(tree, "judges") == ("root", "ambiguous", None)


@scenario
def begin_and_end_together(a: Attempt) -> None:
    a.agent("writer", (1.0, 3.0), "root", span_id="writer")
    a.agent("critic", (1.04, 3.04), "root", span_id="critic")
    asks(a, "writes", (1.06, 2.98), "You write.", None)
    asks(a, "judges", (1.07, 2.99), "You judge.", None)


def test_calls_that_begin_and_end_two_runs_are_nobodys(trees: dict[str, Tree]) -> None:
    tree = trees["begin_and_end_together"]
    assert place(tree, "writes") == place(tree, "judges") == ("root", "ambiguous", None)


@scenario
def one_inside_shares_the_prompt(a: Attempt) -> None:
    a.agent("manager", (0.0, 9.5), "root", span_id="manager")
    a.agent("lead", (1.0, 9.0), "root", span_id="lead")
    asks(a, "begins", (1.01, 2.0), "You help.", None)
    a.agent("helper", (3.0, 6.0), "lead", span_id="helper")
    a.span("step", (3.5, 3.6), "lead", op="other")
    asks(a, "inside", (4.0, 5.0), "You help.", None)
    asks(a, "ends", (8.0, 8.98), "You help.", None)
    a.agent("critic", (9.1, 9.4), "root", span_id="critic")
    asks(a, "judges", (9.11, 9.39), "You judge.", None)


def test_what_begins_and_ends_a_run_is_of_none_around_it_but_may_be_of_one_inside(trees: dict[str, Tree]) -> None:
    tree = trees["one_inside_shares_the_prompt"]
    assert place(tree, "begins") == place(tree, "ends") == ("lead", "content", "lead")
    assert place(tree, "inside") == ("root", "ambiguous", None)


def one_declares(a: Attempt, first: tuple[float, float], second: tuple[float, float]) -> None:
    """A call of the writer's by its parent, and one with the same prompt; the manager's prompt is not known."""
    a.agent("manager", (0.0, 9.0), "root", span_id="manager")
    a.agent("writer", (1.0, 3.0), "root", span_id="writer")
    gateway(
        a, "declared", first, parent="writer", input_messages=json.dumps([{"role": "system", "content": "You write."}])
    )
    asks(a, "waits", second, "You write.", None)
    a.agent("critic", (3.1, 5.0), "root", span_id="critic")
    asks(a, "judges", (3.12, 4.98), "You judge.", None)


@scenario
def declared_at_the_start(a: Attempt) -> None:
    one_declares(a, (1.01, 1.5), (2.0, 2.98))


@scenario
def declared_in_between(a: Attempt) -> None:
    one_declares(a, (1.3, 1.5), (2.0, 2.5))


def test_an_agent_without_a_known_prompt_may_share_one_but_for_calls_that_begin_and_end_a_run(
    trees: dict[str, Tree],
) -> None:
    assert place(trees["declared_at_the_start"], "waits") == ("writer", "content", "writer")
    assert place(trees["declared_in_between"], "waits") == ("root", "ambiguous", None)
