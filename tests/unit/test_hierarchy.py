"""Where the ladder of sql/hierarchy puts spans: each odd case has one defined answer.

Every scenario is a rollout of its own; all of them are derived as one epoch, once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import AgentRule
from tests.lake_maker import Attempt, derived, table

Tree = dict[str, dict[str, Any]]  # span id → row of span_tree
SCENARIOS: dict[str, Callable[[Attempt], None]] = {}


def scenario(build: Callable[[Attempt], None]) -> Callable[[Attempt], None]:
    """`build` fills an attempt that has its root span; the spans that its test asks for have ids of their own."""
    SCENARIOS[build.__name__] = build
    return build


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tree]:
    rows = []
    for name, build in SCENARIOS.items():
        attempt = Attempt(name, f"a-{name}")
        attempt.root(mode="evaluate", span_id="root", at=(0.0, 10.0))
        build(attempt)
        rows += attempt.rows
    rule = AgentRule(key="crew.role", pattern=r"^role:(\w+)")
    lake, epoch = derived(tmp_path_factory.mktemp("hierarchy"), rows, mode="evaluate", agent_rules=[rule])
    found: dict[str, Tree] = {name: {} for name in SCENARIOS}
    for row in table(lake, epoch, "span_tree"):
        found[row["rollout_id"]][row["span_id"]] = row
    return found


def place(tree: Tree, span_id: str) -> tuple[Any, ...]:
    row = tree[span_id]
    return row["parent_id"], row["method"], row["agent"]


def gateway(attempt: Attempt, span_id: str, at: tuple[float, float], **columns: Any) -> str:
    """A call as the gateway records it, in a trace of its own."""
    return attempt.call([1], [2], at, span_id=span_id, **columns)


@scenario
def declared_across_traces(a: Attempt) -> None:
    """As threads and executors do: every span in a trace of its own."""
    parent = "root"
    for number in range(20):
        parent = a.span(
            span_id=f"s{number}", parent=parent, trace_id=f"{number:032x}", agent_name="deep" if number == 0 else None
        )


def test_a_rollout_in_twenty_traces_is_one_tree(trees: dict[str, Tree]) -> None:
    tree = trees["declared_across_traces"]
    assert [tree[f"s{n}"]["depth"] for n in range(20)] == list(range(1, 21))
    assert place(tree, "s19") == ("s18", "declared", "deep")


@scenario
def other_traces_parent(a: Attempt) -> None:
    a.span(span_id="p", agent_name="other trace", trace_id="1" * 32, at=(0.0, 1.0))
    a.span(span_id="p", agent_name="same trace", trace_id="2" * 32, at=(0.5, 1.0))
    a.span(span_id="c", parent="p", trace_id="2" * 32, at=(0.6, 0.7))


def test_of_parents_with_one_id_that_of_the_same_trace_is_meant(trees: dict[str, Tree]) -> None:
    assert trees["other_traces_parent"]["c"]["agent"] == "same trace"


@scenario
def seeded_ids(a: Attempt) -> None:
    """`random.seed` in each step: both steps have the id that their children declare."""
    a.span(span_id="step", agent_name="first", at=(0.1, 0.4), parent="root")
    a.span(span_id="step", agent_name="second", at=(0.5, 0.9), parent="root")
    a.span(span_id="child", at=(0.6, 0.7), parent="step")


def test_of_spans_that_repeat_an_id_the_one_that_was_open_is_the_parent(trees: dict[str, Tree]) -> None:
    assert trees["seeded_ids"]["child"]["agent"] == "second"
    assert trees["seeded_ids"]["step"]["repeated_id"]


@scenario
def own_parent(a: Attempt) -> None:
    a.agent("solver", (0.1, 0.9), "root", span_id="agent")
    a.span(span_id="self", parent="self", at=(0.2, 0.3))


def test_a_span_that_is_its_own_parent_has_none(trees: dict[str, Tree]) -> None:
    assert place(trees["own_parent"], "self") == ("agent", "time", "solver")
    assert trees["own_parent"]["self"]["declared_parent_id"] == "self"


@scenario
def circle(a: Attempt) -> None:
    for number in range(300):
        a.span(
            span_id=f"c{number}",
            parent=f"c{(number + 1) % 300}",
            at=(1 + number / 1000, 2),
            agent_name="lap" if number == 7 else None,
        )
    a.call([1], [2], (1.5, 1.6), "c3", span_id="call")


def test_a_circle_is_broken_at_its_earliest_span(trees: dict[str, Tree]) -> None:
    tree = trees["circle"]
    assert place(tree, "c0") == ("root", "cycle", None)
    assert [tree[f"c{n}"]["depth"] for n in (299, 298, 1)] == [2, 3, 300]
    assert place(tree, "call") == ("c3", "declared", "lap")


@scenario
def two_roots(a: Attempt) -> None:
    a.span("rollout", span_id="again", op="rollout", at=(0.0, 11.0), trace_id="f" * 32)
    a.span(span_id="orphan", at=(0.2, 0.3))


def test_one_root_heads_the_attempt(trees: dict[str, Tree]) -> None:
    tree = trees["two_roots"]
    assert [row["span_id"] for row in tree.values() if row["parent_id"] is None] == [
        min(tree, key=lambda s: tree[s]["node"])
    ]
    assert tree["orphan"]["method"] == "unplaced"


@scenario
def missing_parent(a: Attempt) -> None:
    a.agent("solver", (0.1, 0.9), "root", span_id="agent")
    gateway(a, "one", (0.2, 0.3), parent="gone")
    gateway(a, "two", (0.4, 0.5), parent="gone")
    gateway(a, "far", (1.4, 1.5), parent="lost")


def test_children_of_a_parent_that_never_came_share_a_node_made_for_it(trees: dict[str, Tree]) -> None:
    tree = trees["missing_parent"]
    assert place(tree, "one") == place(tree, "two") == ("gone", "missing_parent", "solver")
    assert place(tree, "gone") == ("agent", "synthesised", "solver")
    assert (tree["gone"]["node"], tree["gone"]["depth"]) == (-tree["one"]["node"], 2)
    assert place(tree, "lost") == ("root", "synthesised", None)
    assert (tree["lost"]["start_ns"], tree["lost"]["end_ns"]) == (tree["far"]["start_ns"], tree["far"]["end_ns"])


@scenario
def missing_parent_of_two_agents(a: Attempt) -> None:
    a.agent("planner", (0.1, 0.4), "root", span_id="planner")
    gateway(a, "one", (0.2, 0.3), parent="gone")
    a.agent("coder", (0.5, 0.8), "root", span_id="coder")
    gateway(a, "two", (0.6, 0.7), parent="gone")
    gateway(a, "none", (0.95, 0.97), parent="gone")


def test_where_time_does_not_place_a_missing_parent_it_places_its_children(trees: dict[str, Tree]) -> None:
    tree = trees["missing_parent_of_two_agents"]
    assert place(tree, "one") == ("planner", "time", "planner")
    assert place(tree, "two") == ("coder", "time", "coder")
    assert place(tree, "none") == ("gone", "missing_parent", None)


@scenario
def missing_parent_of_agents(a: Attempt) -> None:
    a.agent("boss", (0.1, 0.9), "root")
    a.agent("worker", (0.2, 0.4), "gone", span_id="worker")
    gateway(a, "call", (0.5, 0.6), parent="gone")


def test_a_missing_parent_of_agents_is_put_under_no_agent(trees: dict[str, Tree]) -> None:
    tree = trees["missing_parent_of_agents"]
    assert place(tree, "gone") == ("root", "synthesised", None)
    assert tree["worker"]["agent_path"] == "worker"
    assert tree["call"]["agent"] == "boss"


@scenario
def no_times(a: Attempt) -> None:
    a.agent("open", (0.1, 0.9), "root", span_id="agent", end_ns=None)
    gateway(a, "inside", (0.95, 0.97))
    gateway(a, "before", (0.01, 0.02))
    gateway(a, "only a start", (0.5, 0.6), end_ns=None)
    gateway(a, "only an end", (0.5, 0.6), start_ns=None)
    gateway(a, "neither", (0.5, 0.6), start_ns=None, end_ns=None)
    a.agent("unknown", (0.1, 0.9), "root", start_ns=None, end_ns=None)


def test_a_span_without_end_stays_open_and_one_without_times_is_not_placed(trees: dict[str, Tree]) -> None:
    tree = trees["no_times"]
    assert [place(tree, s)[1:] for s in ("inside", "only a start", "only an end")] == [("time", "open")] * 3
    assert [place(tree, s)[1:] for s in ("before", "neither")] == [("unplaced", None)] * 2


@scenario
def equal_times(a: Attempt) -> None:
    a.agent("outer", (0.1, 0.9), "root", span_id="outer")
    a.agent("inner", (0.1, 0.9), "outer", span_id="inner")
    gateway(a, "call", (0.1, 0.9))


def test_of_agents_of_equal_times_the_inner_one_has_the_call(trees: dict[str, Tree]) -> None:
    assert place(trees["equal_times"], "call") == ("inner", "time", "inner")
    assert trees["equal_times"]["call"]["agent_path"] == "outer/inner"


@scenario
def child_encloses_parent(a: Attempt) -> None:
    a.agent("short", (0.4, 0.5), "root", span_id="agent")
    gateway(a, "call", (0.1, 0.9), parent="agent")


def test_what_is_declared_holds_whatever_the_clocks_say(trees: dict[str, Tree]) -> None:
    assert place(trees["child_encloses_parent"], "call") == ("agent", "declared", "short")


@scenario
def outlives_its_agent(a: Attempt) -> None:
    a.agent("alone", (0.1, 0.5), "root", span_id="alone")
    gateway(a, "late", (0.3, 0.54))
    gateway(a, "early", (0.06, 0.2))
    gateway(a, "too late", (0.3, 0.56))


def test_fifty_milliseconds_are_forgiven_at_either_end(trees: dict[str, Tree]) -> None:
    tree = trees["outlives_its_agent"]
    assert [tree[s]["agent"] for s in ("late", "early", "too late")] == ["alone", "alone", None]


@scenario
def outlives_beside_another(a: Attempt) -> None:
    """The call is the first one's, whose end it outlives by a little; the other's time holds it wholly."""
    a.agent("first", (0.1, 0.5), "root")
    a.agent("other", (0.05, 0.9), "root")
    gateway(a, "call", (0.3, 0.51))


def test_a_stream_that_outlives_its_agent_is_not_given_to_another(trees: dict[str, Tree]) -> None:
    row = trees["outlives_beside_another"]["call"]
    assert (row["method"], row["candidates"], row["ambiguous"], row["agent"]) == ("ambiguous", 2, True, None)


@scenario
def other_hosts_clock(a: Attempt) -> None:
    a.agent("alone", (1.0, 1.02), "root")
    gateway(a, "ahead", (0.97, 0.98))


def test_a_clock_that_is_off_is_forgiven_where_one_agent_is_near(trees: dict[str, Tree]) -> None:
    assert trees["other_hosts_clock"]["ahead"]["agent"] == "alone"


@scenario
def deep_chain(a: Attempt) -> None:
    parent = a.agent("solver", (0.0, 9.0), "root")
    for number in range(10_000):
        parent = a.span(span_id=f"d{number}", parent=parent, at=(number / 2000, 9.0))
    gateway(a, "call", (6.0, 6.1), parent=parent)


def test_a_chain_of_ten_thousand_is_walked_to_its_end(trees: dict[str, Tree]) -> None:
    assert trees["deep_chain"]["call"]["depth"] == 10_002
    assert trees["deep_chain"]["call"]["agent"] == "solver"


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
    """Two workers, one after the other with an overlap: the call lies in their time together and in neither's."""
    a.agent("boss", (0.0, 5.0), "root", span_id="boss")
    a.agent("worker", (0.1, 2.0), "boss")
    a.agent("worker", (1.9, 4.0), "boss")
    gateway(a, "call", (1.0, 3.0))


def test_agents_of_one_name_hold_together_only_what_one_of_them_holds(trees: dict[str, Tree]) -> None:
    assert place(trees["relay"], "call") == ("boss", "time", "boss")


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


def ask(tool_call: str) -> str:
    return f'[{{"role": "assistant", "content": null, "tool_calls": [{{"id": "{tool_call}", "type": "function"}}]}}]'


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


@scenario
def user_rule(a: Attempt) -> None:
    a.span(span_id="named", attributes=[("crew.role", "role:writer")], agent_name="overruled", at=(0.1, 0.9))
    a.span(span_id="other", attributes=[("crew.role", "writer")], agent_name="stays", at=(0.1, 0.9))


def test_rules_of_the_settings_come_before_what_ingest_knew(trees: dict[str, Tree]) -> None:
    tree = trees["user_rule"]
    assert [tree[s]["agent"] for s in ("named", "other")] == ["writer", "stays"]


def test_what_was_declared_stays(trees: dict[str, Tree]) -> None:
    for name, build in SCENARIOS.items():
        attempt = Attempt(name)
        attempt.root(span_id="root")
        build(attempt)
        declared = {row["span_id"]: row["parent_span_id"] for row in attempt.rows}
        found = {s: row["declared_parent_id"] for s, row in trees[name].items() if row["method"] != "synthesised"}
        assert found == declared


def test_every_row_says_how_it_was_found_and_how_sure_that_is(trees: dict[str, Tree]) -> None:
    rows = [row for tree in trees.values() for row in tree.values()]
    assert {row["method"] for row in rows} == {
        "root", "declared", "twin", "tool_call", "own_identity", "link", "missing_parent", "time", "same_name",
        "synthesised", "unplaced", "cycle", "ambiguous",
    }  # fmt: skip
    assert all(0 <= row["confidence"] <= 1 and row["candidates"] >= 0 for row in rows)


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
