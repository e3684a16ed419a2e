"""What holds of every tree, whatever the spans were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from hypothesis.strategies import DrawFn, composite

from tests.examples import of_many
from tests.lake_maker import Attempt, derived, received_anew, table

pytestmark = pytest.mark.slow  # many lakes

TOLERANCE = 0.05
ROLLOUTS = 16  # an example; they share one derivation


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lambda: tmp_path_factory.mktemp("lake")


def tree_of(home: Path, attempts: list[Attempt]) -> dict[tuple[str, str], dict[str, Any]]:
    """(rollout, span id) → row of span_tree."""
    lake, epoch = derived(home, [row for a in attempts for row in a.rows], mode="evaluate")
    return {(row["rollout_id"], row["span_id"]): row for row in table(lake, epoch, "span_tree")}


def attempt(number: int) -> Attempt:
    made = Attempt(f"r.{number}", f"a{number}")
    made.root(mode="evaluate", span_id="root", at=(0.0, 100.0))
    return made


times = strategies.tuples(strategies.integers(0, 40), strategies.integers(0, 40)).map(
    lambda pair: (min(pair) / 10, max(pair) / 10)
)
ids = strategies.sampled_from(["a", "b", "c", "d", "e", "f", "root", "never"])


@composite
def messy(draw: DrawFn, number: int, mode: str) -> Attempt:
    """Any parent, any time, any name; ids repeat, ends are missing, batches come twice."""
    made = Attempt(f"r.{number}", f"a{number}", group=f"g{number % 2}")
    made.root(mode=mode, span_id="root", at=(0.0, 5.0))
    for _ in range(draw(strategies.integers(0, 9))):
        columns: dict[str, Any] = {
            "span_id": draw(ids),
            "trace_id": draw(strategies.sampled_from("12")) * 32,
            "agent_name": draw(strategies.sampled_from([None, None, "x", "y"])),
        }
        parent, at = draw(strategies.none() | ids), draw(times)
        kind = draw(strategies.sampled_from(["agent", "llm", "tool", "other"]))
        if kind == "llm":
            made.call([1, 2], [draw(strategies.integers(3, 5))], at, parent, **columns)
            made.rows[-1]["response_id"] = draw(strategies.sampled_from([None, "r1", "r2"]))
            made.rows[-1]["output_messages"] = '[{"content": "yes", "tool_calls": [{"id": "t1"}]}]'
        else:
            made.span("step", at, parent, op=kind, **columns)
            made.rows[-1]["tool_call_id"] = "t1" if kind == "tool" else None
        if draw(strategies.integers(0, 9)) == 0:
            made.rows[-1]["end_ns"] = None
        if draw(strategies.integers(0, 9)) == 0:
            made.rows[-1]["start_ns"] = None
        if draw(strategies.integers(0, 9)) == 0:
            made.rows[-1]["links"] = '[{"span_id": "a"}]'
        if draw(strategies.integers(0, 9)) == 0:
            made.rows.append(made.rows[-1] | {"record_offset": 900 + len(made.rows), "received_ns": 5})
    made.reward(draw(strategies.integers(0, 3)) / 3)
    return made


def all_messy(mode: str) -> strategies.SearchStrategy[list[Attempt]]:
    return strategies.tuples(*(messy(n, mode) for n in range(ROLLOUTS))).map(list)


@of_many(examples=3)  # the first is the simplest there is
@given(attempts=all_messy("train"), order=strategies.randoms(use_true_random=False), parts=strategies.integers(2, 5))
def test_neither_the_order_of_the_spans_nor_the_size_of_buckets_changes_a_byte(
    homes: Any, attempts: list[Attempt], order: Any, parts: int
) -> None:
    rows = [row for a in attempts for row in a.rows]
    _, whole = derived(homes(), rows)
    _, cut = derived(homes(), received_anew(rows, order), spans_a_bucket=len(rows) // parts)
    assert {n: t.digest for n, t in cut.tables.items()} == {n: t.digest for n, t in whole.tables.items()}


@of_many(examples=4)
@given(attempts=all_messy("train"))
def test_every_span_has_one_place_in_a_tree_and_every_call_one_end(homes: Any, attempts: list[Attempt]) -> None:
    lake, epoch = derived(homes(), [row for a in attempts for row in a.rows])
    rows = table(lake, epoch, "span_tree")
    by_node = {row["node"]: row for row in rows}
    assert len(by_node) == len(rows)
    for a in attempts:
        sent = {(r["trace_id"], r["span_id"], str(sorted(r.items(), key=str))) for r in map(content, a.rows)}
        mine = [row for row in rows if row["attempt_id"] == a.rows[0]["attempt_id"]]
        assert len([row for row in mine if row["method"] != "synthesised"]) == len(sent)
        assert len([row for row in mine if row["parent_node"] is None]) == 1
    for row in rows:
        above = by_node.get(row["parent_node"])
        if above is not None:
            assert (row["depth"], row["attempt_id"]) == (above["depth"] + 1, above["attempt_id"])
            assert row["parent_id"] == above["span_id"]
    calls = {row["node"] for row in rows if row["op"] == "llm" and row["twin_of"] is None}
    trained = {int(c.partition(".")[0]) for s in table(lake, epoch, "sequences") for c in s["call_ids"]}
    left_out = [row["call_id"] for row in table(lake, epoch, "exclusions")]
    assert sorted([*trained, *left_out]) == sorted(calls)
    assert all(row["reason"] for row in table(lake, epoch, "exclusions"))


def content(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in ("record_offset", "received_ns")}


@composite
def intact(draw: DrawFn, number: int) -> Attempt:
    """A well-formed tree: every span in its parent's time, declared."""
    made = attempt(number)
    spans = [("root", 0.0, 100.0)]
    for n in range(draw(strategies.integers(0, 12))):
        parent, begin, end = draw(strategies.sampled_from(spans))
        first, last = sorted(draw(strategies.tuples(*[strategies.integers(0, 100)] * 2)))
        at = (begin + (end - begin) * first / 100, begin + (end - begin) * last / 100)
        name = draw(strategies.sampled_from([None, None, "x", "y"]))
        op = draw(strategies.sampled_from(["agent", "tool", "chain"]))
        spans.append((made.span(f"{n}", at, parent, op=op, agent_name=name, trace_id=f"{n:032x}"), *at))
    return made


@of_many(examples=3)
@given(attempts=strategies.tuples(*(intact(n) for n in range(ROLLOUTS))))
def test_an_intact_tree_stays_as_it_is(homes: Any, attempts: tuple[Attempt, ...]) -> None:
    tree = tree_of(homes(), list(attempts))
    assert {key: row["parent_id"] for key, row in tree.items()} == {
        (r["rollout_id"], r["span_id"]): r["parent_span_id"] for a in attempts for r in a.rows
    }
    assert {row["method"] for row in tree.values()} <= {"root", "declared"}


@dataclass
class Known:
    """An attempt of which it is known whose each span is: span id → (agent's span, agent)."""

    attempt: Attempt
    truth: dict[str, tuple[str, str]]


@composite
def sequential(draw: DrawFn, number: int) -> Known:
    """Agents one after another, some calling others; some of their spans have lost their parents."""
    made, truth, now = attempt(number), {}, 1.0
    for _ in range(draw(strategies.integers(1, 4))):
        name = draw(strategies.sampled_from(["x", "y", "z"]))
        steps = draw(strategies.lists(strategies.sampled_from(["call", "tool", "helper"]), max_size=4))
        begin, now = now, now + len(steps) + 1
        agent = made.agent(name, (begin, now), "root")
        for place, step in enumerate(steps):
            at = (begin + place + 0.2, begin + place + draw(strategies.sampled_from([0.5, 0.9])))
            lost = draw(strategies.booleans())
            if step == "helper":
                inner = made.agent(f"{name}'s helper", at, agent)
                call = made.call([1], [2], (at[0] + 0.1, at[1] - 0.1), None if lost else inner)
                truth[call] = (inner, f"{name}'s helper")
            elif step == "call":
                truth[made.call([1], [2], at, None if lost else agent)] = (agent, name)
            else:
                tool = made.span("tool", at, None if lost else agent, op="tool", trace_id=f"{len(made.rows):032x}")
                truth[tool] = (agent, name)
        now += 0.2
    return Known(made, truth)


@of_many(examples=3)
@given(cases=strategies.tuples(*(sequential(n) for n in range(ROLLOUTS))))
def test_a_sequential_rollout_that_lost_links_is_repaired_exactly(homes: Any, cases: tuple[Known, ...]) -> None:
    tree = tree_of(homes(), [case.attempt for case in cases])
    for case in cases:
        rollout = case.attempt.rows[0]["rollout_id"]
        assert {s: (tree[rollout, s]["parent_id"], tree[rollout, s]["agent"]) for s in case.truth} == case.truth


@composite
def parallel(draw: DrawFn, number: int) -> Known:
    """Agents at once, perhaps under one that waits for them; calls have lost their parents and may outlive them."""
    made, truth = attempt(number), {}
    above = made.agent("boss", (0.5, 60.0), "root") if draw(strategies.booleans()) else "root"
    for _ in range(draw(strategies.integers(1, 5))):
        name = draw(strategies.sampled_from(["x", "y", "z"]))
        begin, length = draw(strategies.integers(10, 50)) / 10, draw(strategies.integers(1, 40)) / 10
        agent = made.agent(name, (begin, begin + length), draw(strategies.sampled_from([above, None])))
        for _ in range(draw(strategies.integers(0, 3))):
            first, last = sorted(draw(strategies.tuples(*[strategies.integers(0, 20)] * 2)))
            at = (begin + length * first / 20, begin + length * last / 20 + draw(strategies.integers(0, 5)) / 100)
            truth[made.call([1], [2], at, draw(strategies.sampled_from([None, None, agent, "never"])))] = (agent, name)
    return Known(made, truth)


@of_many(examples=5)
@given(cases=strategies.tuples(*(parallel(n) for n in range(ROLLOUTS))))
def test_of_parallel_agents_no_call_is_given_to_the_wrong_one(homes: Any, cases: tuple[Known, ...]) -> None:
    tree = tree_of(homes(), [case.attempt for case in cases])
    for case in cases:
        for span, (_, name) in case.truth.items():
            row = tree[case.attempt.rows[0]["rollout_id"], span]
            assert row["agent"] == name or (row["agent"] is None and row["ambiguous"]), row


@dataclass
class Window:
    """An agent's time in ns, and the agent around it; a child never has its parent's name."""

    name: str
    up: str | None
    begin: int
    end: int

    def path(self, agents: dict[str, Window]) -> str:
        return self.name if self.up is None else f"{agents[self.up].path(agents)}/{self.name}"


@composite
def windows(draw: DrawFn, number: int) -> tuple[Attempt, dict[str, Window]]:
    """Agents nested by declaration, at any times; spans without parents among them."""
    made, agents = attempt(number), dict[str, Window]()
    for _ in range(draw(strategies.integers(1, 7))):
        up = draw(strategies.sampled_from([None, *agents]))
        name = draw(strategies.sampled_from([n for n in "xyz" if up is None or n != agents[up].name]))
        span = made.agent(name, draw(times), up or "root")
        if draw(strategies.integers(0, 9)) == 0:
            made.rows[-1]["end_ns"] = None
        agents[span] = Window(name, up, made.rows[-1]["start_ns"], made.rows[-1]["end_ns"] or 1 << 62)
    for _ in range(draw(strategies.integers(1, 5))):
        begin, end = draw(times)
        early, late = draw(strategies.tuples(*[strategies.sampled_from([0, 0.03, 0.06])] * 2))
        made.span("orphan", (begin - early, end + late), trace_id=f"{len(made.rows):032x}")
    for span in reversed(agents):  # an agent runs as long as those inside it
        up = agents[span].up
        if up is not None:
            agents[up].begin = min(agents[up].begin, agents[span].begin)
            agents[up].end = max(agents[up].end, agents[span].end)
    return made, agents


def innermost(agents: dict[str, Window], begin: int, end: int) -> tuple[list[str], bool]:
    """The agents that were open when a span began, by the definition: each is looked at, those around another are left out.
    And whether another may be meant: one that opens soon, or one around an inner agent that the span outlives."""
    tolerance = int(TOLERANCE * 1e9)
    open_then = [s for s, a in agents.items() if a.begin <= begin <= a.end]
    held = [s for s, a in agents.items() if a.begin - tolerance <= begin <= a.end]
    if not held and end - begin < tolerance:
        held = [s for s, a in agents.items() if a.begin - tolerance <= begin <= a.end + tolerance]
    around = {agents[s].up for s in held}
    inner = [s for s in held if s not in around]
    outlives = any(agents[s].end + tolerance < end and agents[s].up is not None for s in inner)
    return inner, bool(open_then and len(held) > len(open_then)) or outlives


@of_many(examples=6)
@given(cases=strategies.tuples(*(windows(n) for n in range(ROLLOUTS))))
def test_the_sums_over_windows_find_what_looking_at_each_agent_finds(
    homes: Any, cases: tuple[tuple[Attempt, dict[str, Window]], ...]
) -> None:
    tree = tree_of(homes(), [made for made, _ in cases])
    for made, agents in cases:
        for orphan in (r for r in made.rows if r["name"] == "orphan"):
            row = tree[orphan["rollout_id"], orphan["span_id"]]
            holders, doubtful = innermost(agents, orphan["start_ns"], orphan["end_ns"])
            paths = {agents[s].path(agents) for s in holders}
            found = row["method"], row["agent_path"]
            if not holders:
                assert found == ("unplaced", None)
            elif len(holders) == 1 and doubtful:
                assert found == ("ambiguous", None)
            elif len(holders) == 1:
                assert found == ("time", paths.pop()) and row["parent_id"] == holders[0]
            elif len(paths) == 1:
                # Siblings of one name are told so, unless others of their kind hold it only together.
                assert found in {("same_name", *paths), ("ambiguous", None)} and row["candidates"] >= 2
            else:
                assert found == ("ambiguous", None) and row["candidates"] >= 2
