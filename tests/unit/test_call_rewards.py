"""Which call each reward goes to (`assign: nearest`, `discounted`), and what calls are credited with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lake_maker import Attempt
from tests.unit.test_rewards import FAILING_TOOL, attempt, emit, returns, tables, tool, two_agents

pytestmark = pytest.mark.slow  # many lakes

Case = tuple[Attempt, list[tuple[str, float]]]
_nearest: list[Case] = []


def nearest(make: Callable[[int], Case]) -> Callable[[dict[str, list[tuple[str, float]]]], None]:
    """A test of what `assign: nearest` gives the calls of a rollout: (agent, return) of each. All are of one epoch."""
    _nearest.append(make(len(_nearest)))
    rollout, expected = f"r.{len(_nearest) - 1}", _nearest[-1][1]

    def test(given: dict[str, list[tuple[str, float]]]) -> None:
        assert given[rollout] == expected

    return test


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for rollout, agent, value in returns(
        tmp_path_factory.mktemp("nearest"), [made for made, _ in _nearest], assign="nearest"
    ):
        found[rollout].append((agent, value))
    return found


@nearest
def test_nearest_gives_a_reward_to_the_latest_call_of_its_agent(number: int) -> Case:
    made, solver, critic = two_agents(number)
    emit(made, 0.1, 0.36, solver)  # after the critic's call as well, which is later
    emit(made, 0.2, 0.6, solver)
    emit(made, 0.4, 0.6, critic)
    return made, [
        ("solver", 0.1),
        ("critic", 0),
        ("solver", 0.2),
        ("critic", 0.4),
    ]


def test_a_second_late_reward_does_not_spill_onto_an_earlier_call(tmp_path: Path) -> None:
    made, solver, _ = two_agents()
    emit(made, 0.5, 0.6, solver)
    second = emit(made, 0.7, 0.7, solver)
    emit(made, 0.1, 0.15, solver)  # before the first call
    (steps,) = tables(tmp_path, [made], "reward_steps", assign="nearest")
    assert [(s["value"], s["step"], s["left_out"]) for s in steps] == [
        (0.1, None, "before_every_call"),
        (0.5, 2, None),
        (0.7, None, "call_has_reward"),
    ]
    assert steps[-1]["span_id"] == second


@nearest
def test_agents_of_one_name_at_work_at_once_keep_their_rewards(number: int) -> Case:
    made = attempt(number)
    first, second = made.agent("worker"), made.agent("worker")
    made.call([1], [2], (0.2, 0.3), first)
    made.call([3], [4], (0.25, 0.4), second)
    emit(made, 0.1, 0.5, first)
    emit(made, 0.2, 0.6, second)
    return made, [("worker", 0.1), ("worker", 0.2)]


def test_a_reward_of_an_agent_without_calls_goes_to_nobody_elses(tmp_path: Path) -> None:
    made, _, _ = two_agents()
    judge = made.agent("judge")
    emit(made, 0.5, 0.6, judge)
    calls, steps = tables(tmp_path, [made], "call_returns", "reward_steps", assign="nearest")
    assert {c["return"] for c in calls} == {0}
    assert [(s["policy"], s["left_out"]) for s in steps] == [(None, "no_call_of_agent")]


@nearest
def test_a_reward_from_outside_goes_to_the_last_call_of_every_agent(number: int) -> Case:
    made, solver, _ = two_agents(number)
    emit(made, 0.25, 0.6, solver)
    made.reward(1.0)
    return made, [
        ("solver", 0),
        ("critic", 0),
        ("solver", 1.25),
        ("critic", 1),
    ]


@pytest.mark.parametrize(("assign", "late"), [("nearest", "group_of_one"), ("discounted", "no_spread")])
def test_a_success_is_not_punished_for_having_more_calls(tmp_path: Path, assign: str, late: str) -> None:
    """Two rollouts with reward 1, one of three calls and one of a single call."""
    made = []
    for rollout, ends in (("r.0", (0.2, 0.4, 0.6)), ("r.1", (0.2,))):
        attempt = Attempt(rollout, f"a.{rollout}")
        attempt.root()
        solver = attempt.agent("solver")
        for number, end in enumerate(ends):
            attempt.call([1, number], [2], at=(end - 0.05, end), parent=solver)
        emit(attempt, 1.0, 0.7, solver)
        made.append(attempt)
    gamma = {"gamma": 1.0} if assign == "discounted" else {}
    (rows,) = tables(tmp_path, made, "advantages", assign=assign, **gamma)
    late_steps = [row for row in rows if row["step"] > 1]
    assert [(row["rollout_id"], row["advantage"], row["left_out"]) for row in late_steps] == [
        ("r.0", None, late),
        ("r.0", None, late),
    ]


def test_discounted_is_the_return_to_go_of_each_agent(tmp_path: Path) -> None:
    made, solver, _ = two_agents()
    tool(made, "error", solver, 0.3)
    tool(made, "error", solver, 0.31)
    made.reward(1.0)
    assert returns(tmp_path, [made], assign="discounted", gamma=0.5, air=[FAILING_TOOL]) == [
        ("r.0", "solver", pytest.approx(-0.2 + 0.5)),
        ("r.0", "critic", 0.5),
        ("r.0", "solver", 1.0),
        ("r.0", "critic", 1.0),
    ]


@pytest.mark.parametrize(("gamma", "first"), [(0.0, 0.1), (1.0, 0.6)])
def test_gamma_at_its_ends(tmp_path: Path, gamma: float, first: float) -> None:
    made, solver, _ = two_agents()
    emit(made, 0.1, 0.3, solver)
    emit(made, 0.5, 0.6, solver)
    found = returns(tmp_path, [made], assign="discounted", gamma=gamma)
    assert [value for _, agent, value in found if agent == "solver"] == pytest.approx([first, 0.5])


def test_weights_hold_for_rewards_of_calls_too(tmp_path: Path) -> None:
    made, solver, _ = two_agents()
    emit(made, 1.0, 0.3, solver, "right")
    emit(made, 1.0, 0.31, solver, "short")
    emit(made, 1.0, 0.32, solver, "noise")
    found = returns(tmp_path, [made], assign="nearest", weights={"right": 2.0, "short": -0.5})
    assert found[0] == ("r.0", "solver", 1.5)


def test_a_failed_attempts_calls_get_the_failure_reward_at_its_end(tmp_path: Path) -> None:
    made = attempt(0, "error")
    for at in (0.2, 0.4):
        made.call([1, int(at * 10)], [2], (at, at + 0.1))
    emit(made, 5.0, 0.5)
    found = returns(tmp_path, [made], assign="discounted", gamma=0.5, failure_reward=-1.0)
    assert [value for *_, value in found] == [-0.5, -1.0]


def test_a_reward_whose_agent_is_ambiguous_leaves_the_attempt_out(tmp_path: Path) -> None:
    made, solver, _ = two_agents()
    emit(made, 0.5, 0.6, solver)
    made.span("reward", (0.7, 0.7), None, op="reward", reward=1.0, reward_name="reward", trace_id="d" * 32)
    exclusions, steps = tables(tmp_path, [made], "exclusions", "reward_steps", assign="nearest", advantages="reinforce")
    assert [e["reason"] for e in exclusions] == ["ambiguous_reward"] * 4
    assert {s["left_out"] for s in steps} == {None, "ambiguous_agent"}
    assert "ambiguous_reward" not in [
        e["reason"] for e in tables(tmp_path / "final", [made], "exclusions", advantages="reinforce")[0]
    ]


def test_advantages_of_calls_land_on_their_own_tokens(tmp_path: Path) -> None:
    attempts = []
    for number, (early, late) in enumerate([(0.0, 1.0), (1.0, 1.5)]):
        made = attempt(number)
        made.call([1], [2, 3])
        emit(made, early, 0.35)
        made.call([1, 2, 3, 4], [5], (0.4, 0.5))
        emit(made, late, 0.6)
        attempts.append(made)
    (sequences,) = tables(tmp_path, attempts, "sequences", assign="nearest", advantages="dr_grpo")
    assert [s["advantages"] for s in sequences] == [[0, -0.5, -0.5, 0, -0.25], [0, 0.5, 0.5, 0, 0.25]]
    assert [s["reward"] for s in sequences] == [1.0, 1.5]


@pytest.mark.parametrize("assign", [{"assign": "nearest"}, {"assign": "discounted", "gamma": 0.0}])
def test_clocks_of_hosts_that_differ_do_not_give_a_reward_to_the_call_before(
    tmp_path: Path, assign: dict[str, Any]
) -> None:
    """The calls' clock is 30 ms ahead of the agent's: each reward comes before the end of the call it is for."""
    made = attempt()
    solver = made.agent("solver")
    for number, (start, end) in enumerate([(0.20, 0.30), (0.31, 0.40), (0.45, 0.50)]):
        made.call([1, number], [2], (start, end), solver)
        emit(made, (number + 1) / 10, end - 0.03, solver)
    assert [value for *_, value in returns(tmp_path, [made], **assign)] == [0.1, 0.2, 0.3]


@nearest
def test_a_reward_before_a_call_begins_is_not_for_that_call(number: int) -> Case:
    """Calls of a few milliseconds, one clock: the first one's reward came before the second began."""
    made = attempt(number)
    solver = made.agent("solver")
    made.call([1], [2], (0.200, 0.210), solver)
    emit(made, 0.1, 0.212, solver)
    made.call([3], [4], (0.213, 0.220), solver)
    return made, [("solver", 0.1), ("solver", 0)]


@nearest
def test_of_calls_at_once_a_reward_is_for_one_that_had_ended(number: int) -> Case:
    """An agent that calls twice at once can emit while it waits: that is no sign of clocks that differ."""
    made = attempt(number)
    solver = made.agent("solver")
    made.call([1], [2], (0.20, 0.30), solver)
    made.call([3], [4], (0.21, 0.34), solver)
    emit(made, 0.1, 0.31, solver)
    emit(made, 0.2, 0.35, solver)
    return made, [("solver", 0.1), ("solver", 0.2)]


def test_what_a_rule_gives_for_a_call_goes_to_that_call(tmp_path: Path) -> None:
    made = attempt()
    solver = made.agent("solver")
    made.call([1], [2], (0.20, 0.30), solver, finish_reasons='["length"]')
    made.call([3], [4], (0.21, 0.30), solver)
    made.call([5], [6], (0.30, 0.32), solver)
    made.reward(0.0)
    found = returns(tmp_path, [made], assign="nearest", air="default")
    assert [value for *_, value in found] == pytest.approx([-0.05, 0, 0])


@pytest.mark.parametrize("outcome", ["ok", "error"])
def test_what_is_given_after_the_attempt_goes_to_the_last_call_whatever_the_clocks_say(
    tmp_path: Path, outcome: str
) -> None:
    made = attempt(0, outcome, at=(0.0, 0.15))  # by the runner's clock it ended before the first call did
    solver, critic = made.agent("solver"), made.agent("critic")
    for parent, start in ((solver, 0.2), (critic, 0.3), (solver, 0.4), (critic, 0.5)):
        made.call([1, int(start * 10)], [2], (start, start + 0.05), parent)
    made.reward(1.0, 0.01)
    found = returns(tmp_path, [made], assign="nearest", failure_reward=1.0)
    assert [value for *_, value in found] == [0, 0, 1, 1]


def test_discounting_thousands_of_calls_is_the_sum_it_says(tmp_path: Path) -> None:
    made = attempt()
    solver = made.agent("solver", (0.0, 30.0))
    values = [((number * 7) % 11) / 10 for number in range(300)]
    for number, value in enumerate(values):
        made.call([1, number], [2], (number / 10, number / 10 + 0.05), solver)
        emit(made, value, number / 10 + 0.06, solver)
    found = [value for *_, value in returns(tmp_path, [made], assign="discounted", gamma=0.9)]
    expected: list[float] = []
    later = 0.0
    for value in reversed(values):
        later = value + 0.9 * later
        expected.insert(0, later)
    assert found == pytest.approx(expected)


def test_agents_of_one_name_at_work_at_once_keep_their_rewards_when_discounted(tmp_path: Path) -> None:
    made = attempt()
    first, second = made.agent("worker"), made.agent("worker")
    made.call([1], [2], (0.2, 0.3), first)
    made.call([3], [4], (0.25, 0.4), second)
    made.call([5], [6], (0.45, 0.5), first)
    emit(made, 0.1, 0.55, first)
    emit(made, 0.2, 0.6, second)
    made.reward(1.0)  # from outside: for the last call of that name, whoever's
    found = [value for *_, value in returns(tmp_path, [made], assign="discounted", gamma=0.5)]
    assert found == pytest.approx([0.25 + 0.05, 0.5 + 0.2, 1.0 + 0.1])


@pytest.mark.parametrize("assign", [{"assign": "nearest"}, {"assign": "discounted", "gamma": 0.5}])
def test_rewards_of_namesakes_at_work_at_once_go_to_nobody_where_their_calls_are_not_told_apart(
    tmp_path: Path, assign: dict[str, Any]
) -> None:
    made = attempt()
    bad, good = made.agent("worker"), made.agent("worker")
    made.call([1], [2], (0.2, 0.3))
    made.call([3], [4], (0.25, 0.4))
    emit(made, -1.0, 0.5, bad)
    emit(made, 1.0, 0.6, good)
    exclusions, steps = tables(tmp_path, [made], "exclusions", "reward_steps", advantages="reinforce", **assign)
    assert [s["left_out"] for s in steps] == ["ambiguous_call"] * 2
    assert [e["reason"] for e in exclusions] == ["ambiguous_reward"] * 2


@nearest
def test_a_namesakes_call_that_time_tells_apart_has_its_own_agents_reward(number: int) -> Case:
    made = attempt(number)
    early, late = made.agent("worker", (0.1, 0.5)), made.agent("worker", (0.4, 0.9))
    made.call([1], [2], (0.2, 0.3))
    made.call([3], [4], (0.6, 0.7))
    emit(made, -1.0, 0.75, early)
    emit(made, 1.0, 0.8, late)
    return made, [("worker", -1.0), ("worker", 1.0)]


@nearest
def test_a_reward_of_a_namesake_without_calls_is_not_the_others(number: int) -> Case:
    made = attempt(number)
    first, second = made.agent("worker"), made.agent("worker")
    made.call([1], [2], (0.2, 0.3), first)
    emit(made, -1.0, 0.5, second)
    return made, [("worker", 0)]


@nearest
def test_a_reward_of_an_agent_that_was_called_again_is_for_its_last_call_of_the_time_before(number: int) -> Case:
    made = attempt(number)
    made.call([1], [2], (0.2, 0.3), made.agent("worker", (0.1, 0.4)))
    emit(made, 1.0, 0.6, made.agent("worker", (0.5, 0.9)))
    return made, [("worker", 1.0)]


@nearest
def test_a_reward_right_under_a_calls_span_is_that_calls(number: int) -> Case:
    made = attempt(number)
    solver = made.agent("solver")
    first = made.call([1], [2], (0.2, 0.3), solver)
    made.call([3], [4], (0.35, 0.5), solver)
    emit(made, 1.0, 0.6, first)
    seen = made.span("chat", (0.54, 0.71), solver, op="llm", response_id="twice")
    made.call([5], [6], (0.55, 0.7), response_id="twice")
    made.call([7], [8], (0.72, 0.75), solver)
    emit(made, 0.5, 0.8, seen)
    return made, [("solver", 1.0), ("solver", 0), ("solver", 0.5), ("solver", 0)]


@nearest
def test_a_reward_that_names_a_step_is_for_the_last_call_before_its_end(number: int) -> Case:
    """The calls are not known to lie in the steps, as where an agent's client is not instrumented."""
    made = attempt(number)
    solver = made.agent("solver")
    made.call([1], [2], (0.2, 0.28), solver)
    made.call([3], [4], (0.4, 0.48), solver)
    first = made.span("step", (0.15, 0.3), solver)
    second = made.span("step", (0.35, 0.5), solver)
    emit(made, 0.2, 0.6, second)
    emit(made, 0.1, 0.7, first)
    return made, [("solver", 0.1), ("solver", 0.2)]


@nearest
def test_a_reward_that_names_one_of_two_steps_at_once_is_for_the_call_below_it(number: int) -> Case:
    made = attempt(number)
    solver = made.agent("solver")
    slow, quick = made.span("step", (0.2, 0.6), solver), made.span("step", (0.2, 0.59), solver)
    deeper = made.span("try", (0.2, 0.5), slow)
    made.call([1], [2], (0.24, 0.4), deeper)
    made.call([3], [4], (0.25, 0.5), quick)
    emit(made, 0.1, 0.7, slow)
    emit(made, 0.2, 0.7, quick)
    graded = made.span("step", (0.61, 0.9), solver, reward=0.4)
    made.call([5], [6], (0.62, 0.7), graded)
    made.call([7], [8], (0.65, 0.8), solver)
    return made, [("solver", 0.1), ("solver", 0.2), ("solver", 0.4), ("solver", 0)]


@nearest
def test_a_reward_that_names_a_tool_is_for_the_call_that_asked_for_it(number: int) -> Case:
    made = attempt(number)
    solver = made.agent("solver")
    made.call([1], [2], (0.2, 0.3), solver)
    ran = tool(made, "ok", solver, 0.35)
    made.call([3], [4], (0.4, 0.5), solver)
    emit(made, 1.0, 0.6, ran)
    return made, [("solver", 1.0), ("solver", 0)]


@nearest
def test_a_reward_that_names_an_agent_that_has_ended_is_for_its_last_call(number: int) -> Case:
    """Its last call outlives it by the gateway's clock."""
    made = attempt(number)
    first, second = made.agent("worker", (0.1, 0.4)), made.agent("worker", (0.5, 0.9))
    made.call([1], [2], (0.2, 0.48), first)
    made.call([3], [4], (0.6, 0.7), second)
    emit(made, 1.0, 0.8, first)
    return made, [("worker", 1.0), ("worker", 0)]


def test_rewards_of_an_agent_whose_calls_no_policy_answers_are_counted_as_going_nowhere(tmp_path: Path) -> None:
    made, solver, _ = two_agents()
    judge = made.agent("judge")
    made.call([1], [2], (0.55, 0.58), judge, policy="frozen")
    for at in (0.6, 0.7):
        emit(made, 0.5, at, judge)
    emit(made, 0.5, 0.8, solver)
    (unmatched,) = tables(tmp_path, [made], "unmatched_settings", assign="nearest")
    assert [(u["setting"], u["given"]) for u in unmatched] == [("reward.assign", "nearest")]
    assert "agent judge, so its 2 rewards go to no call" in unmatched[0]["meaning"]
    assert tables(tmp_path / "final", [made], "unmatched_settings") == [[]]
