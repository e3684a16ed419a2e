"""From spans to sequences: whose call it is, as each SQL file promises in its header."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lake_maker import Attempt, derived, table
from tests.scenarios import Epoch, Scenarios, group, reasons, rows

SCENARIOS = Scenarios()
scenario = SCENARIOS.add


@pytest.fixture(scope="module")
def epoch(tmp_path_factory: pytest.TempPathFactory) -> Epoch:
    return SCENARIOS.derived(tmp_path_factory.mktemp("sql"))


def test_agent_match_searches_in_the_nearest_named_agent(tmp_path: Path) -> None:
    attempts = group([0.0, 1.0])
    assert reasons(tmp_path, attempts, agent_match="sol") == []
    assert reasons(tmp_path, attempts, agent_match="^planner$") == ["agent_not_matched"] * 2
    assert reasons(tmp_path, attempts, agent_exclude="solver") == ["agent_excluded"] * 2


@scenario
def two_agents() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        attempt.agent("critic")
    return attempts


def test_a_call_inside_two_agents_spans_is_ambiguous_and_trained_where_that_changes_nothing(epoch: Epoch) -> None:
    assert [row["method"] for row in epoch["two_agents"]["policy_calls"]] == ["ambiguous"] * 2
    assert not epoch["two_agents"]["exclusions"]


@scenario
def nested_agents() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        outer = next(r["span_id"] for r in attempt.rows if r["op"] == "agent")
        attempt.agent("helper", at=(0.15, 0.5), parent=outer)
    return attempts


def test_of_nested_agents_the_inner_one_has_the_call(epoch: Epoch) -> None:
    calls = epoch["nested_agents"]["policy_calls"]
    assert [(c["agent"], c["agent_path"], c["method"]) for c in calls] == [("helper", "solver/helper", "time")] * 2


@scenario
def one_after_another() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        attempt.rows = [r for r in attempt.rows if r["op"] != "agent"]
        attempt.agent("first", at=(0.195, 0.305))
        attempt.agent("second", at=(0.310, 0.4))
    return attempts


def test_agents_one_after_another_are_told_apart_however_fast(epoch: Epoch) -> None:
    assert [(c["agent"], c["method"]) for c in epoch["one_after_another"]["policy_calls"]] == [("first", "time")] * 2


@scenario
def deep_agent() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        outer = next(r["span_id"] for r in attempt.rows if r["op"] == "agent")
        step = attempt.span("step", (0.15, 0.5), outer)
        attempt.agent("worker", at=(0.16, 0.5), parent=step)
    return attempts


def test_the_inner_agent_has_the_call_however_deep_it_is(epoch: Epoch) -> None:
    assert [c["agent_path"] for c in epoch["deep_agent"]["policy_calls"]] == ["solver/worker"] * 2


def test_a_call_under_an_ambiguous_span_is_not_trained(tmp_path: Path) -> None:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        attempt.agent("critic")
        chain = attempt.span("chain", (0.15, 0.5))
        call = next(r for r in attempt.rows if r["op"] == "llm")
        call |= {"parent_span_id": chain, "trace_id": "0" * 31 + "1"}
    assert reasons(tmp_path, attempts, agent_exclude="critic") == ["ambiguous_agent"] * 2


@scenario
def twins() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        attempt.agent("other")  # time alone would be ambiguous
        agent = next(r["span_id"] for r in attempt.rows if r["agent_name"] == "solver")
        call = next(r for r in attempt.rows if r["op"] == "llm")
        attempt.span("ChatCompletion", (0.2, 0.3), agent, op="llm", response_id=call["response_id"])
    return attempts


def test_a_twin_gives_its_place_to_the_call_that_has_the_token_ids(epoch: Epoch) -> None:
    calls = epoch["twins"]["policy_calls"]
    assert [(c["agent"], c["method"], c["left_out"]) for c in calls] == [("solver", "twin", None)] * 2


def test_a_cycle_is_broken_and_every_span_has_a_place(tmp_path: Path) -> None:
    attempts = group([0.0, 1.0])
    attempts[0].span(span_id="aa", parent="bb", at=(0.1, 0.2))
    attempts[0].span(span_id="bb", parent="cc", at=(0.2, 0.3))
    attempts[0].span(span_id="cc", parent="aa", at=(0.3, 0.4))
    attempts[0].span(span_id="dd", parent="bb", at=(0.3, 0.4))
    attempts[0].span(span_id="ee", parent="ee", at=(0.1, 0.2))
    lake, epoch = derived(tmp_path, rows(attempts))
    tree = {r["span_id"]: r for r in table(lake, epoch, "span_tree") if r["attempt_id"] == "a0"}
    assert len(tree) == len(attempts[0].rows)
    assert tree["aa"]["method"] == "cycle" and tree["aa"]["depth"] == 1
    assert (tree["cc"]["depth"], tree["bb"]["depth"], tree["dd"]["depth"]) == (2, 3, 4)


def test_a_batch_sent_twice_counts_once_and_a_repeated_id_twice(tmp_path: Path) -> None:
    attempts = group([0.0, 1.0])
    again = [row | {"record_offset": 900, "received_ns": 5} for row in attempts[0].rows]
    call = next(r for r in attempts[1].rows if r["op"] == "llm")
    other = call | {"response_ids": [77], "response_logprobs": [-1.0], "response_id": "another"}
    lake, epoch = derived(tmp_path, rows(attempts) + again + [other])
    tree = table(lake, epoch, "span_tree")
    assert len(tree) == len(rows(attempts)) + 1
    assert sum(r["repeated_id"] for r in tree) == 2
