"""Whose call it is, where what ran next to it, who ran its tool, or a lost span speaks for another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.agent_truth import prompts_known
from tests.lake_maker import Attempt, derived, table
from tests.tree_scenarios import Scenarios, Tree, ask, gateway, place

pytestmark = pytest.mark.slow  # many lakes

scenario = Scenarios()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    return scenario.trees(tmp_path_factory.mktemp("lake"))


def prompted(attempt: Attempt, span_id: str, at: tuple[float, float], system: str) -> None:
    """A call whose first message is the system's."""
    gateway(attempt, span_id, at, input_messages=json.dumps([{"role": "system", "content": system}]))


@scenario
def another_runs_the_tool(a: Attempt) -> None:
    a.agent("assistant", (0.0, 1.0), "root", span_id="assistant")
    gateway(a, "call", (0.1, 0.9), output_messages=ask("c1"))
    a.agent("tools", (1.1, 2.0), "root", span_id="tools")
    a.span("execute_tool", (1.2, 1.3), "tools", op="tool", tool_call_id="c1")


@scenario
def another_runs_the_tool_of_a_short_call(a: Attempt) -> None:
    a.agent("assistant", (0.0, 1.0), "root", span_id="assistant")
    gateway(a, "call", (0.1, 0.12), output_messages=ask("c1"))
    a.agent("tools", (0.121, 0.5), "root", span_id="tools")
    a.span("execute_tool", (0.13, 0.3), "tools", op="tool", tool_call_id="c1")


@pytest.mark.parametrize(
    ("name", "method"), [("another_runs_the_tool", "time"), ("another_runs_the_tool_of_a_short_call", "ambiguous")]
)
def test_who_runs_a_tool_did_not_ask_for_it(trees: dict[str, Tree], name: str, method: str) -> None:
    assert trees[name]["call"]["agent"] in ("assistant", None)
    assert trees[name]["call"]["method"] == method


def runs_tool(a: Attempt, agent: str, name: str, at: float, **arguments: Any) -> None:
    """A span of a tool call whose id, as some models count, is the first of its conversation."""
    said = {"tool_name": name, "tool_call_id": "call_0", "tool_arguments": json.dumps(arguments)}
    a.span("execute_tool", (at, at + 0.1), agent, op="tool", **said)


@scenario
def another_tool_of_that_id(a: Attempt) -> None:
    a.agent("solver", (0.0, 9.0), "root", span_id="solver")
    a.agent("elsewhere", (0.0, 9.0), "root", span_id="elsewhere")
    gateway(a, "call", (1.0, 2.0), output_messages=ask("call_0", "search", q="x"))
    runs_tool(a, "elsewhere", "divide", 2.1)


@scenario
def another_run_of_that_id(a: Attempt) -> None:
    a.agent("solver", (0.0, 9.0), "root", span_id="solver")
    a.agent("elsewhere", (0.0, 9.0), "root", span_id="elsewhere")
    gateway(a, "call", (1.0, 2.0), output_messages=ask("call_0", "search", q="x"))
    runs_tool(a, "elsewhere", "search", 2.1, q="y", limit=3)


@pytest.mark.parametrize("name", ["another_tool_of_that_id", "another_run_of_that_id"])
def test_a_tool_call_id_that_another_agents_tool_bears_too_gives_it_no_call(trees: dict[str, Tree], name: str) -> None:
    assert place(trees[name], "call") == ("root", "ambiguous", None)


@scenario
def first_ids_of_two_conversations(a: Attempt) -> None:
    for agent, question in (("solver", "x"), ("elsewhere", "y")):
        a.agent(agent, (0.0, 9.0), "root", span_id=agent)
        gateway(a, f"asks {question}", (1.0, 2.0), output_messages=ask("call_0", "search", q=question))
        runs_tool(a, agent, "search", 2.1, q=question)


def test_of_calls_that_asked_under_one_id_a_tool_is_of_the_one_with_its_arguments(trees: dict[str, Tree]) -> None:
    tree = trees["first_ids_of_two_conversations"]
    assert place(tree, "asks x") == ("solver", "tool_call", "solver")
    assert place(tree, "asks y") == ("elsewhere", "tool_call", "elsewhere")


@scenario
def outer_one_works(a: Attempt) -> None:
    a.agent("lead", (0.0, 9.0), "root", span_id="lead")
    a.agent("helper", (1.0, 6.0), "lead", span_id="helper")
    gateway(a, "declared", (1.5, 2.5), parent="lead")
    gateway(a, "call", (3.0, 4.0))


@scenario
def namesake_works(a: Attempt) -> None:
    a.agent("planner", (0.0, 9.0), "root", span_id="planner")
    a.agent("planner", (1.0, 6.0), "planner", span_id="inner")
    a.agent("search", (1.0, 6.0), "planner", span_id="search")
    gateway(a, "call", (3.0, 4.0))


@pytest.mark.parametrize("name", ["outer_one_works", "namesake_works"])
def test_a_call_is_not_the_inner_agents_while_the_outer_one_works(trees: dict[str, Tree], name: str) -> None:
    assert place(trees[name], "call") == ("root", "ambiguous", None)


@scenario
def outlives_the_inner_one(a: Attempt) -> None:
    a.agent("supervisor", (0.0, 9.0), "root", span_id="supervisor")
    a.agent("writer", (1.0, 2.0), "supervisor", span_id="writer")
    gateway(a, "call", (1.2, 2.06))


def test_a_call_that_outlives_the_inner_agent_is_not_the_outer_ones(trees: dict[str, Tree]) -> None:
    assert place(trees["outlives_the_inner_one"], "call") == ("root", "ambiguous", None)


@scenario
def in_the_background(a: Attempt) -> None:
    a.agent("lead", (0.0, 9.0), "root", span_id="lead")
    prompted(a, "alone", (0.2, 0.8), "You lead.")
    a.agent("helper", (1.0, 6.0), "lead", span_id="helper")
    prompted(a, "helps", (1.5, 2.5), "You help.")
    prompted(a, "meanwhile", (3.0, 4.0), "You lead.")


def test_the_prompt_tells_the_outer_agents_call_from_the_inner_ones(trees: dict[str, Tree]) -> None:
    tree = trees["in_the_background"]
    assert place(tree, "helps") == ("helper", "time", "helper")
    assert place(tree, "meanwhile") == ("lead", "content", "lead")


@scenario
def side_by_side(a: Attempt) -> None:
    a.agent("writer", (0.0, 5.0), "root", span_id="writer")
    a.agent("critic", (1.0, 6.0), "root", span_id="critic")
    prompted(a, "before", (0.2, 0.8), "You write. It is 12:30 on 2026-11-24.")
    prompted(a, "writes", (2.0, 3.0), "You write. It is 12:31 on 2026-11-24.")
    prompted(a, "judges", (2.0, 3.0), "You judge.")


def test_of_agents_side_by_side_the_one_with_that_prompt_made_the_call(trees: dict[str, Tree]) -> None:
    tree = trees["side_by_side"]
    assert place(tree, "before") == ("writer", "time", "writer")
    assert place(tree, "writes") == ("writer", "content", "writer")
    assert place(tree, "judges") == ("critic", "content", "critic")


@scenario
def one_prompt_for_all(a: Attempt) -> None:
    a.agent("writer", (0.0, 5.0), "root", span_id="writer")
    a.agent("critic", (1.0, 6.0), "root", span_id="critic")
    prompted(a, "before", (0.2, 0.8), "You are helpful.")
    prompted(a, "both", (2.0, 3.0), "You are helpful.")


def test_a_prompt_that_all_have_tells_nothing(trees: dict[str, Tree]) -> None:
    assert place(trees["one_prompt_for_all"], "both") == ("root", "ambiguous", None)


@scenario
def inner_one_lost(a: Attempt) -> None:
    a.agent("lead", (0.0, 9.0), "root", span_id="lead")
    prompted(a, "leads", (0.2, 0.8), "You lead.")
    prompted(a, "whose", (1.5, 2.5), "You help.")


def test_of_two_prompts_in_one_agents_time_neither_is_taken_for_its(trees: dict[str, Tree]) -> None:
    tree = trees["inner_one_lost"]
    assert place(tree, "leads") == place(tree, "whose") == ("root", "ambiguous", None)


def says(a: Attempt, span_id: str, at: tuple[float, float], heard: list[str], reply: str, **columns: Any) -> None:
    """A call under one system message for all, with the messages before it, by turns, and its reply."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(heard)]
    texts = {
        "input_messages": json.dumps([{"role": "system", "content": "You are helpful."}, *messages]),
        "output_messages": json.dumps([{"role": "assistant", "content": reply}]),
    }
    gateway(a, span_id, at, **texts, **columns)


@scenario
def goes_on(a: Attempt) -> None:
    a.agent("writer", (0.0, 5.0), "root", span_id="writer")
    a.agent("critic", (1.0, 6.0), "root", span_id="critic")
    says(a, "begins", (0.2, 0.8), ["write"], "a draft")
    says(a, "goes on", (2.0, 3.0), ["write", "a draft", "shorter"], "a line")
    says(a, "and on", (3.1, 3.5), ["write", "a draft", "shorter", "a line", "longer"], "two lines")
    says(a, "judges", (2.0, 3.0), ["judge"], "good")
    says(a, "judges again", (5.2, 5.5), ["judge", "good", "sure?"], "yes")
    says(a, "alone", (4.0, 4.5), ["whose?"], "nobody's")


def test_a_call_that_goes_on_with_a_conversation_is_of_the_agent_that_began_it(trees: dict[str, Tree]) -> None:
    tree = trees["goes_on"]
    assert place(tree, "goes on") == place(tree, "and on") == ("writer", "content", "writer")
    assert place(tree, "judges") == ("critic", "content", "critic")  # as the one behind it
    assert place(tree, "alone") == ("root", "ambiguous", None)


@scenario
def goes_on_while_the_inner_one_works(a: Attempt) -> None:
    a.agent("lead", (0.0, 9.0), "root", span_id="lead")
    says(a, "begins", (0.2, 0.8), ["lead"], "a plan")
    a.agent("helper", (1.0, 6.0), "lead", span_id="helper")
    says(a, "helps", (1.1, 2.0), ["help"], "done")
    says(a, "goes on", (3.0, 4.0), ["lead", "a plan", "on"], "the rest")


def test_a_conversation_tells_the_outer_agents_call_from_the_inner_ones(trees: dict[str, Tree]) -> None:
    tree = trees["goes_on_while_the_inner_one_works"]
    assert place(tree, "helps") == ("helper", "time", "helper")
    assert place(tree, "goes on") == ("lead", "content", "lead")


@scenario
def handed_over(a: Attempt) -> None:
    a.agent("triage", (0.0, 2.0), "root", span_id="triage")
    says(a, "begins", (0.2, 1.8), ["help"], "over to the writer")
    a.agent("writer", (2.1, 4.0), "root", span_id="writer")
    says(a, "goes on", (2.2, 3.0), ["help", "over to the writer", "go on"], "done")


def test_a_conversation_that_is_handed_over_is_of_who_is_open(trees: dict[str, Tree]) -> None:
    assert place(trees["handed_over"], "goes on") == ("writer", "time", "writer")


@scenario
def two_at_once(a: Attempt) -> None:
    a.agent("lead", (0.0, 9.0), "root", span_id="lead")
    a.agent("helper", (1.0, 3.0), "lead", span_id="helper")
    gateway(a, "helps", (1.01, 2.5))
    gateway(a, "leads", (1.03, 2.0))
    gateway(a, "alone", (2.6, 2.9))


def test_of_two_calls_at_once_in_an_inner_agents_time_neither_is_certain(trees: dict[str, Tree]) -> None:
    tree = trees["two_at_once"]
    assert place(tree, "helps") == place(tree, "leads") == ("root", "ambiguous", None)
    assert place(tree, "alone") == ("helper", "time", "helper")


@scenario
def prompt_of_one_who_has_ended(a: Attempt) -> None:
    a.agent("writer", (0.0, 1.0), "root", span_id="writer")
    said = {"parent": "writer", "input_messages": json.dumps([{"role": "system", "content": "You are helpful."}])}
    gateway(a, "writes", (0.2, 0.8), **said)
    a.agent("critic", (2.0, 6.0), "root", span_id="critic")
    prompted(a, "judges", (2.1, 2.3), "You judge.")
    a.agent("tester", (2.5, 5.0), "root", span_id="tester")
    prompted(a, "tests", (3.0, 4.0), "You are helpful.")


def test_a_prompt_is_shared_where_the_agent_that_it_is_known_of_has_ended(trees: dict[str, Tree]) -> None:
    assert place(trees["prompt_of_one_who_has_ended"], "tests")[2] != "writer"


@scenario
def gateway_behind(a: Attempt) -> None:
    a.agent("writer", (0.5, 2.0), "root", span_id="writer")
    gateway(a, "writes", (0.31, 1.0))
    a.agent("critic", (2.1, 4.0), "root", span_id="critic")
    gateway(a, "judges", (1.92, 3.0))


def test_a_gateway_whose_clock_is_behind_is_seen_and_allowed_for(trees: dict[str, Tree]) -> None:
    tree = trees["gateway_behind"]
    assert place(tree, "writes") == ("writer", "time", "writer")
    assert place(tree, "judges") == ("critic", "time", "critic")


@scenario
def under_a_session(a: Attempt) -> None:
    session = a.span("session", (0.0, 9.0), "root", span_id="session", op="other")
    a.agent("writer", (0.5, 2.0), session, span_id="writer")
    a.agent("critic", (2.5, 4.0), session, span_id="critic")
    gateway(a, "writes", (0.6, 1.0), parent=session)
    post = a.span("POST", (2.55, 3.05), session, op="other")
    gateway(a, "judges", (2.6, 3.0), parent=post)
    gateway(a, "at the root", (1.2, 1.4), parent="root")
    gateway(a, "nobody", (6.0, 6.5), parent=session)


def test_a_call_under_a_session_or_the_root_keeps_its_parent_and_is_of_the_agent_that_time_tells(
    trees: dict[str, Tree],
) -> None:
    tree = trees["under_a_session"]
    assert place(tree, "writes") == ("session", "time", "writer")
    assert tree["judges"]["agent_path"] == "critic"
    assert place(tree, "at the root") == ("root", "time", "writer")
    assert place(tree, "nobody") == ("session", "declared", None)


@scenario
def agentops_with_openai_agents(a: Attempt) -> None:
    """AgentOps declares the calls right under its session; the SDK's agents lie in it, one handing over to the next."""
    session = a.span("agents.session", (0.0, 9.0), "root", span_id="session", op="workflow")
    a.agent("triage", (0.5, 2.0), session, span_id="triage")
    a.agent("writer", (2.1, 6.0), session, span_id="writer")
    a.agent("checker", (3.0, 4.5), "writer", span_id="checker")
    for name, at in (("asks", 0.6), ("writes", 2.2), ("checks", 3.5), ("ends", 5.0)):
        a.span("openai.chat.completion", (at, at + 0.6), session, op="llm", response_id=name, span_id=f"{name} seen")
        gateway(a, name, (at + 0.05, at + 0.55), response_id=name)


def test_calls_under_agentops_session_are_of_the_one_agent_that_holds_each(trees: dict[str, Tree]) -> None:
    tree = trees["agentops_with_openai_agents"]
    found = [tree[name]["agent"] for name in ("asks", "writes", "checks", "ends")]
    assert found == ["triage", "writer", "checker", "writer"]
    assert {tree[name]["parent_id"] for name in ("asks", "writes", "checks", "ends")} == {"session"}


def test_a_cohort_that_the_pattern_takes_whole_is_trained_on_all_its_ambiguous_calls(tmp_path: Path) -> None:
    made = Attempt()
    made.root(at=(0.0, 10.0))
    for number in range(40):
        made.agent(f"worker-{number}", (0.1, 9.0))
        made.call([1, number], [2], (1.0 + number / 100, 8.0))
    made.agent("lead", (9.1, 9.5))
    made.reward(1.0)
    for pattern, expected in (("worker-.*", [None] * 40), ("worker-1$", ["ambiguous_agent"] * 40)):
        lake, epoch = derived(tmp_path / pattern[:8], made.rows, agent_match=pattern)
        assert [call["left_out"] for call in table(lake, epoch, "policy_calls")] == expected


def test_calls_inside_a_reward_operation_are_a_judges(tmp_path: Path) -> None:
    made = Attempt()
    made.root()
    agent = made.agent("solver")
    made.call([1], [2], (0.2, 0.3), agent)
    named = {"agentlightning.operation.name": "agentlightning.reward"}
    inside = made.span("agentlightning.operation", (0.4, 0.6), agent, attributes=list(named.items()))
    made.call([3], [4], (0.45, 0.5), inside)
    reward = made.span("judge", (0.7, 0.9), agent, op="reward", reward=1.0, reward_name="reward")
    made.call([5], [6], (0.75, 0.8), reward)
    # In a circle of parents too.
    made.span("judge", (0.9, 0.99), "c2", op="reward", reward=1.0, reward_name="reward", span_id="c1")
    made.span("step", (0.91, 0.99), "c1", span_id="c2")
    made.call([7], [8], (0.92, 0.93), "c2")
    lake, epoch = derived(tmp_path, made.rows)
    left_out = [call["left_out"] for call in table(lake, epoch, "policy_calls")]
    assert left_out == [None, "reward_operation", "reward_operation", "reward_operation"]


@scenario
def client_lost_its_parent(a: Attempt) -> None:
    a.agent("solver", (0.0, 9.0), "root", span_id="solver")
    post = a.span("POST", (0.9, 2.1), "gone", span_id="post", op="other")
    gateway(a, "call", (1.0, 2.0), parent=post)
    a.span("step", (3.0, 4.0), span_id="step")
    a.span("inside", (3.1, 3.9), "step", span_id="inside")


def test_confidence_is_that_of_the_weakest_step_up_to_the_agent(trees: dict[str, Tree]) -> None:
    tree = trees["client_lost_its_parent"]
    assert (tree["inside"]["method"], tree["inside"]["agent"], tree["inside"]["confidence"]) == (
        "declared",
        "solver",
        0.95,
    )
    assert (tree["call"]["method"], tree["call"]["agent"], tree["call"]["confidence"]) == ("declared", None, 0.0)


def team(rollout: str, helper_lost: bool = False) -> list[dict[str, Any]]:
    """A lead with a helper, whose calls declare nothing."""
    made = Attempt(rollout, "a")
    made.root(at=(0.0, 10.0), span_id="root")
    made.agent("lead", (0.1, 9.0), "root", span_id="lead")
    prompted(made, "leads", (0.2, 0.8), "You lead.")
    if not helper_lost:
        made.agent("helper", (1.0, 3.0), "lead", span_id="helper")
    prompted(made, "helps", (1.5, 2.5), "You help.")
    made.reward(1.0)
    return made.rows


def test_a_prompt_that_earlier_epochs_knew_names_an_agent_whose_span_is_lost(tmp_path: Path) -> None:
    def agents(home: Path, prompts: dict[str, str]) -> list[tuple[str | None, str]]:
        lake, epoch = derived(home, team("lost", helper_lost=True), prompts=prompts)
        return [(call["agent"], call["method"]) for call in table(lake, epoch, "policy_calls")]

    known = prompts_known(tmp_path / "before", [row for n in range(3) for row in team(f"r.{n}")])
    assert sorted(known.values()) == ["helper", "lead"]
    assert agents(tmp_path / "first", {}) == [(None, "ambiguous")] * 2
    assert agents(tmp_path / "later", known) == [("lead", "time"), ("helper", "content")]
