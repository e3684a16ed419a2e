"""Where tools, links, and records of one call put spans."""

from __future__ import annotations

import pytest

from tests.lake_maker import Attempt
from tests.tree_scenarios import Scenarios, Tree, ask, gateway, place

scenario = Scenarios()


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    return scenario.trees(tmp_path_factory.mktemp("hierarchy"))


@scenario
def tools_in_threads(a: Attempt) -> None:
    for name in ("planner", "coder"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
    gateway(a, "call", (0.2, 0.3), parent="coder", output_messages=ask("call_1"))
    gateway(a, "other", (0.2, 0.3), parent="planner", output_messages=ask("call_2"))
    a.span("run", (0.4, 0.5), op="tool", tool_call_id="call_1", span_id="tool")
    a.span("run", (0.4, 0.5), op="tool", tool_call_id="call_3", span_id="nobody's")


def test_a_tool_without_parent_belongs_beside_the_call_that_asked_for_it(trees: dict[str, Tree]) -> None:
    tree = trees["tools_in_threads"]
    assert place(tree, "tool") == ("coder", "tool_call", "coder")
    assert tree["nobody's"]["method"] == "ambiguous"


@scenario
def callers_of_tools(a: Attempt) -> None:
    for name in ("planner", "coder"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
        a.span("run", (0.4, 0.5), name, op="tool", tool_call_id=f"call_{name}")
    gateway(a, "call", (0.2, 0.3), output_messages=ask("call_coder"))
    gateway(a, "twice 1", (0.2, 0.3), output_messages=ask("call_x"))
    gateway(a, "twice 2", (0.2, 0.3), output_messages=ask("call_x"))
    a.span("run", (0.4, 0.5), "planner", op="tool", tool_call_id="call_x")


def test_a_call_without_parent_belongs_beside_the_tool_it_asked_for(trees: dict[str, Tree]) -> None:
    tree = trees["callers_of_tools"]
    assert place(tree, "call") == ("coder", "tool_call", "coder")
    assert [tree[s]["method"] for s in ("twice 1", "twice 2")] == ["ambiguous"] * 2


@scenario
def tool_beside_a_lost_call(a: Attempt) -> None:
    a.agent("solver", (0.1, 0.35), "root", span_id="solver")
    gateway(a, "call", (0.2, 0.3), output_messages=ask("call_1"))
    a.span("run", (0.6, 0.7), op="tool", tool_call_id="call_1", span_id="tool")


def test_a_tool_goes_where_its_call_is_put_by_time(trees: dict[str, Tree]) -> None:
    assert place(trees["tool_beside_a_lost_call"], "tool") == ("solver", "tool_call", "solver")


@scenario
def message(a: Attempt) -> None:
    a.agent("sender", (0.1, 0.4), "root", span_id="sender")
    a.span("send", (0.2, 0.3), "sender", span_id="send")
    a.span("publish", (0.3, 0.4), links='[{"trace_id": "x", "span_id": "send"}]', span_id="publish")
    a.agent("receiver", (0.7, 0.8), "publish", span_id="receiver")
    a.span("many", (0.5, 0.6), links='[{"span_id": "send"}, {"span_id": "sender"}]', span_id="many")


def test_a_link_to_one_span_is_a_place_and_no_nesting(trees: dict[str, Tree]) -> None:
    tree = trees["message"]
    assert place(tree, "publish") == ("send", "link", "sender")
    assert tree["receiver"]["agent_path"] == "receiver"
    assert tree["many"]["method"] == "unplaced"


@scenario
def links_in_a_circle(a: Attempt) -> None:
    a.span("a", span_id="a", links='[{"span_id": "b"}]')
    a.span("b", span_id="b", links='[{"span_id": "a"}]')


def test_links_in_a_circle_lead_to_the_root(trees: dict[str, Tree]) -> None:
    assert [place(trees["links_in_a_circle"], s)[:2] for s in "ab"] == [("root", "cycle")] * 2


@scenario
def twins(a: Attempt) -> None:
    """The gateway's record hangs under the HTTP client of the inner of two instrumentations."""
    a.agent("solver", (0.1, 0.9), "root", span_id="agent")
    a.span("create", (0.2, 0.5), "agent", op="llm", span_id="outer")
    a.span("ChatCompletion", (0.21, 0.49), "outer", op="llm", response_id="r1", span_id="inner")
    a.span("POST", (0.22, 0.48), "inner", span_id="http")
    gateway(a, "gateway", (0.23, 0.47), parent="http", response_id="r1")


def test_all_records_of_a_call_are_one_in_the_place_of_the_outermost(trees: dict[str, Tree]) -> None:
    tree = trees["twins"]
    assert place(tree, "gateway") == ("agent", "twin", "solver")
    kept = tree["gateway"]["node"]
    assert {s: tree[s]["twin_of"] for s in ("outer", "inner", "http", "gateway")} == {
        "outer": kept, "inner": kept, "http": None, "gateway": None
    }  # fmt: skip


@scenario
def twin_with_a_name(a: Attempt) -> None:
    for name in ("one", "two"):
        a.agent(name, (0.1, 0.9), "root")
    gateway(a, "gateway", (0.2, 0.3), response_id="r1")
    a.span("chat", (0.2, 0.3), op="llm", response_id="r1", agent_name="two", span_id="twin")


def test_a_call_goes_by_the_name_of_its_twin(trees: dict[str, Tree]) -> None:
    assert place(trees["twin_with_a_name"], "gateway") == ("root", "own_identity", "two")


@scenario
def one_id_for_all(a: Attempt) -> None:
    """A mock that answers every call with the same id."""
    for number in range(3):
        a.call([1] * (number + 1), [2], (0.2 + number, 0.3 + number), span_id=f"c{number}", response_id="mock")


def test_an_id_under_which_different_calls_were_sampled_makes_no_twins(trees: dict[str, Tree]) -> None:
    assert all(row["twin_of"] is None for row in trees["one_id_for_all"].values())


SAID = {
    "input_messages": '[{"role": "user", "content": "2+2?"}]',
    "output_messages": '[{"role": "assistant", "content": "4"}]',
}
NUMBERED = [
    ("llm.input_messages.0.message.content", "2+2?"),
    ("llm.output_messages.0.message.contents.0.message_content.text", "4"),
]


@scenario
def told_by_content(a: Attempt) -> None:
    for name in ("one", "two"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
    gateway(a, "gateway", (0.2, 0.3), **SAID)
    a.span("generate", (0.19, 0.31), "two", op="llm", attributes=NUMBERED, span_id="twin")
    gateway(a, "later", (0.5, 0.6), **SAID | {"output_messages": '[{"role": "assistant", "content": "5"}]'})


@scenario
def told_by_two(a: Attempt) -> None:
    for name in ("one", "two"):
        a.agent(name, (0.1, 0.9), "root", span_id=name)
        gateway(a, f"{name}'s", (0.2, 0.3), **SAID)
        a.span("generate", (0.19, 0.31), name, op="llm", attributes=NUMBERED, span_id=f"{name}'s twin")


def test_records_without_an_id_are_told_by_what_was_said_where_it_was_said_once(trees: dict[str, Tree]) -> None:
    tree = trees["told_by_content"]
    assert place(tree, "gateway") == ("two", "twin", "two")
    assert tree["later"]["method"] == "ambiguous"
    assert all(row["twin_of"] is None for row in trees["told_by_two"].values())


@scenario
def wrapper_around_calls(a: Attempt) -> None:
    """A client that retries: one span around two calls."""
    a.agent("solver", (0.1, 0.9), "root", span_id="agent")
    a.span("generate", (0.2, 0.8), "agent", op="llm", span_id="wrapper")
    gateway(a, "first", (0.3, 0.4), parent="wrapper")
    gateway(a, "second", (0.5, 0.6), parent="wrapper")


def test_a_span_around_two_calls_is_no_third_call(trees: dict[str, Tree]) -> None:
    tree = trees["wrapper_around_calls"]
    assert tree["wrapper"]["twin_of"] == tree["first"]["node"]
    assert tree["second"]["twin_of"] is None and tree["second"]["agent"] == "solver"
