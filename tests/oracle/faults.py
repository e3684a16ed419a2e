"""The faults of Agent Lightning 0.3.0's repair, each as small a rollout as shows it, with our answer to the same spans.

What the oracle says stands in tests/data/oracle/faults.json. A call is named by its response's first token.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.lake_maker import Attempt
from tests.oracle.cases import Case

# The first token of the response, the agent, the reward.
Answer = tuple[int, str | None, float | None]


@dataclass
class Fault:
    """`oracle` and `ours`: the calls that train, in order; `raises`: what the oracle does instead."""

    case: Case
    ours: list[Answer]
    oracle: list[Answer] = field(default_factory=list)
    raises: str | None = None
    left_out: dict[int, str] = field(default_factory=dict)


def _rollout(name: str) -> tuple[Attempt, str]:
    attempt = Attempt(f"r.{name}")
    return attempt, attempt.root(at=(0.0, 2.0))


def child_encloses_parent() -> Fault:
    """A call that outlasts its agent on both sides. The oracle puts the agent under its own call: a cycle, off the
    tree, and the call is gone. A declared parent holds here, whatever the clocks say."""
    attempt, root = _rollout("child_encloses_parent")
    agent = attempt.agent("planner", (0.2, 0.4), root)
    attempt.call([1], [10], (0.1, 0.5), agent)
    attempt.reward(1.0, 0.9, parent=root)
    return Fault(Case(attempt), oracle=[], ours=[(10, "planner", 1.0)])


def tightest_window_steals() -> Fault:
    """Two agents at the same time, and a call of the one that lies within both. The oracle gives it to the shorter; here
    its agent stays open. Without `agent_match` either's call is trained on alike, so it is kept."""
    attempt, root = _rollout("tightest_window_steals")
    attempt.agent("planner", (0.1, 0.9), root)
    attempt.agent("executor", (0.3, 0.7), root)
    attempt.call([1], [10], (0.4, 0.5))  # the planner's
    attempt.call([1], [11], (0.75, 0.8))  # nobody else could have made this one
    attempt.reward(1.0, 0.95, parent=root)
    return Fault(
        Case(attempt),
        oracle=[(11, "planner", 1.0), (10, "executor", None)],
        ours=[(10, None, 1.0), (11, "planner", 1.0)],
    )


def parallel_calls_nest() -> Fault:
    """Two calls of an agent at once, without response ids. The oracle puts the shorter under the longer, where it takes
    it for the same call. A call is never the parent of a call here, unless it says so."""
    attempt, root = _rollout("parallel_calls_nest")
    attempt.agent("planner", (0.1, 0.9), root)
    attempt.call([1], [10], (0.2, 0.6), response_id=None)
    attempt.call([2], [11], (0.3, 0.4), response_id=None)
    attempt.reward(1.0, 0.95, parent=root)
    return Fault(Case(attempt), oracle=[(10, "planner", 1.0)], ours=[(10, "planner", 1.0), (11, "planner", 1.0)])


def equal_intervals() -> Fault:
    """A call that takes as long as its agent, to the tick of a coarse clock. The oracle leaves it at the root."""
    attempt, root = _rollout("equal_intervals")
    attempt.agent("executor", (0.2, 0.6), root)
    attempt.call([1], [10], (0.2, 0.6))
    attempt.reward(1.0, 0.9, parent=root)
    return Fault(Case(attempt, "executor"), oracle=[], ours=[(10, "executor", 1.0)])


def order_of_traversal() -> Fault:
    """Three turns, of which the second lost its parent. The oracle hangs it behind the others, and so the turns come out
    as 1, 3, 2. Here calls are in order of time."""
    attempt, root = _rollout("order_of_traversal")
    agent = attempt.agent("planner", (0.1, 0.9), root)
    attempt.call([1], [10], (0.2, 0.3), agent)
    attempt.call([1, 10], [11], (0.4, 0.5))
    attempt.call([1, 10, 11], [12], (0.6, 0.7), agent)
    attempt.reward(1.0, 0.95, parent=root)
    return Fault(
        Case(attempt),
        oracle=[(10, "planner", None), (12, "planner", 1.0), (11, "planner", None)],
        ours=[(10, "planner", 1.0), (11, "planner", 1.0), (12, "planner", 1.0)],
    )


def other_agents_reward() -> Fault:
    """The executor earns a reward and the planner is trained. The oracle gives the reward to the planner's call, which
    was the last it looked at. `assign: nearest` knows whose reward it is."""
    attempt, root = _rollout("other_agents_reward")
    planner = attempt.agent("planner", (0.1, 0.4), root)
    attempt.call([1], [10], (0.2, 0.3), planner)
    attempt.reward(0.25, 0.35, parent=planner, reward_source="agent")
    planner = attempt.agent("planner", (0.4, 0.6), root)
    attempt.call([1], [11], (0.45, 0.55), planner)
    executor = attempt.agent("executor", (0.6, 0.9), root)
    attempt.call([2], [12], (0.65, 0.7), executor)
    attempt.reward(1.0, 0.8, parent=executor, reward_source="agent")
    return Fault(
        Case(attempt, "planner", "nearest"),
        oracle=[(10, "planner", 0.25), (11, "planner", 1.0)],
        ours=[(10, "planner", 0.25), (11, "planner", 0.0)],
        left_out={12: "agent_not_matched"},
    )


def second_reward_spills() -> Fault:
    """Two rewards after two turns. The oracle gives the later one to the earlier turn, and takes the earlier for the
    rollout's. With `assign: final` the last one is the rollout's."""
    attempt, root = _rollout("second_reward_spills")
    agent = attempt.agent("planner", (0.1, 0.7), root)
    attempt.call([1], [10], (0.2, 0.3), agent)
    attempt.call([1, 10], [11], (0.4, 0.5), agent)
    attempt.reward(0.25, 0.8, parent=root)
    attempt.reward(1.0, 0.9, parent=root)
    return Fault(
        Case(attempt),
        oracle=[(10, "planner", 1.0), (11, "planner", 0.25)],
        ours=[(10, "planner", 1.0), (11, "planner", 1.0)],
    )


def second_reward_spills_back() -> Fault:
    """The same, where rewards go to calls (`assign: nearest`): the second has no call left, and is counted as
    `call_has_reward` rather than given to a turn that it was not for."""
    fault = second_reward_spills()
    rows = fault.case.attempt.rows
    for row in rows:
        row["rollout_id"] += "_back"
    return Fault(
        Case(fault.case.attempt, assign="nearest"),
        oracle=fault.oracle,
        ours=[(10, "planner", 0.0), (11, "planner", 0.25)],
    )


def no_end() -> Fault:
    """A process was killed and its span has no end. The oracle raises; here the span stays open."""
    attempt, root = _rollout("no_end")
    agent = attempt.agent("planner", (0.1, 0.9), root, end_ns=None)
    attempt.call([1], [10], (0.2, 0.3), agent)
    attempt.call([2], [11], (0.4, 0.5))
    attempt.reward(1.0, 0.95, parent=root)
    return Fault(Case(attempt), raises="TypeError", ours=[(10, "planner", 1.0), (11, "planner", 1.0)])


def deep_chain() -> Fault:
    """A recursive agent, 3,000 spans deep. The oracle recurses in Python and raises."""
    attempt, parent = _rollout("deep_chain")
    parent = attempt.agent("planner", (0.0, 1.9), parent)
    for depth in range(3000):
        parent = attempt.span("step", (0.0001 * depth, 1.8 - 0.0001 * depth), parent)
    attempt.call([1], [10], (0.4, 0.5), parent)
    attempt.reward(1.0, 1.95, parent=parent)
    return Fault(Case(attempt), raises="RecursionError", ours=[(10, "planner", 1.0)])


def odd_attribute() -> Fault:
    """A reward that is no number. The oracle loses the whole rollout over it; here that one reward does not count."""
    attempt, root = _rollout("odd_attribute")
    agent = attempt.agent("planner", (0.1, 0.7), root)
    attempt.call([1], [10], (0.2, 0.3), agent)
    attempt.span("agentlightning.annotation", (0.8, 0.8), root, attributes=[("agentlightning.reward.0.value", "good")])
    attempt.reward(1.0, 0.9, parent=root)
    return Fault(Case(attempt), raises="ValidationError", ours=[(10, "planner", 1.0)])


FAULTS: dict[str, Callable[[], Fault]] = {
    fault.__name__: fault
    for fault in (
        child_encloses_parent,
        tightest_window_steals,
        parallel_calls_nest,
        equal_intervals,
        order_of_traversal,
        other_agents_reward,
        second_reward_spills,
        second_reward_spills_back,
        no_end,
        deep_chain,
        odd_attribute,
    )
}


def shuffled(number: int) -> Case:
    """One rollout of two agents, some links lost, its spans in the `number`th order."""
    attempt, root = _rollout(f"shuffled-{number}")
    planner = attempt.agent("planner", (0.1, 0.5), root)
    attempt.call([1], [10], (0.15, 0.2), planner)
    attempt.call([1], [11], (0.25, 0.3))
    executor = attempt.agent("executor", (0.55, 0.9), root)
    attempt.call([2], [12], (0.6, 0.7))
    attempt.call([2], [13], (0.75, 0.8), executor)
    attempt.reward(1.0, 0.95, parent=root)
    random.Random(number).shuffle(attempt.rows)
    return Case(attempt)
