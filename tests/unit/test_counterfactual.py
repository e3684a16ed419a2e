"""The estimator `counterfactual`: an agent is compared with rollouts in which the others had said the same."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies

from lightning_core.config import PolicySettings
from lightning_core.epoch.derive_inputs import sql_files
from lightning_core.lake import catalog
from tests.examples import of_many
from tests.lake_maker import Attempt, derived, settings, table

POLICY = PolicySettings(advantages="counterfactual")
GIVEN: dict[str, Any] = {"policies": [POLICY], "assign": "discounted", "gamma": 1.0}


def rollout(number: int, reward: float, said: Sequence[tuple[str, str]], group: str = "g") -> Attempt:
    """A rollout whose agents made these calls (agent, output), one after another."""
    attempt = Attempt(f"r.{number}", f"a{number}", group)
    attempt.root()
    agents = {name: attempt.agent(name) for name, _ in said}
    for place, (name, text) in enumerate(said):
        at = (0.2 + place * 0.05, 0.24 + place * 0.05)
        messages = json.dumps([{"role": "assistant", "content": text}])
        attempt.call([1, 2 + place], [ord(text[0])], at, agents[name], output_messages=messages)
    attempt.reward(reward)
    return attempt


def advantages(home: Path, attempts: list[Attempt], **changes: Any) -> dict[tuple[str, str, int], dict[str, Any]]:
    rows = [row for attempt in attempts for row in attempt.rows]
    lake, epoch = derived(home, rows, **(GIVEN | changes))
    return {(r["rollout_id"], r["agent"], r["step"]): r for r in table(lake, epoch, "advantages")}


def of_agent(found: dict[tuple[str, str, int], dict[str, Any]], agent: str) -> list[tuple[float | None, bool]]:
    return [(row["advantage"], row["fell_back"]) for key, row in sorted(found.items()) if key[1] == agent]


def test_an_agent_is_compared_with_rollouts_in_which_the_others_had_said_the_same(tmp_path: Path) -> None:
    found = advantages(
        tmp_path,
        [
            rollout(0, 1.0, [("planner", "left"), ("worker", "yes")]),
            rollout(1, 0.0, [("planner", "left"), ("worker", "no")]),
            rollout(2, 9.0, [("planner", "right"), ("worker", "yes")]),
            rollout(3, 6.0, [("planner", "right"), ("worker", "no")]),
        ],
    )
    assert of_agent(found, "worker") == [(1.0, False), (-1.0, False), (3.0, False), (-3.0, False)]
    planner = of_agent(found, "planner")
    assert [advantage for advantage, _ in planner] == pytest.approx([1 - 5.0, 0 - 16 / 3, 9 - 7 / 3, 6 - 10 / 3])
    assert {fell_back for _, fell_back in planner} == {False}, "nobody had said anything before it, so all are alike"
    assert {(key[1], row["group_rollouts"]) for key, row in found.items()} == {("worker", 2), ("planner", 4)}


def test_where_no_other_rollout_is_alike_it_is_compared_with_its_group_and_says_so(tmp_path: Path) -> None:
    found = advantages(
        tmp_path,
        [
            rollout(0, 1.0, [("planner", "a"), ("worker", "x")]),
            rollout(1, 3.0, [("planner", "a"), ("worker", "y")]),
            rollout(2, 8.0, [("planner", "b"), ("worker", "x")]),
        ],
    )
    assert of_agent(found, "worker") == [(-2.0, False), (2.0, False), (6.0, True)]


def test_what_an_agent_caused_is_not_held_against_it(tmp_path: Path) -> None:
    """The worker does as the planner says, and is what is rewarded: compared where it said the same, the planner did nothing."""
    found = advantages(
        tmp_path,
        [
            rollout(0, 1.0, [("planner", "right"), ("worker", "right")]),
            rollout(1, 1.0, [("planner", "right"), ("worker", "right")]),
            rollout(2, 0.0, [("planner", "wrong"), ("worker", "wrong")]),
            rollout(3, 0.0, [("planner", "wrong"), ("worker", "wrong")]),
        ],
    )
    assert [a for a, _ in of_agent(found, "planner")] == pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3])
    assert of_agent(found, "worker") == [(None, False)] * 4
    assert {row["left_out"] for key, row in found.items() if key[1] == "worker"} == {"no_spread"}


def test_calls_of_frozen_models_count_and_those_of_which_nothing_was_recorded_leave_it_unknown(tmp_path: Path) -> None:
    attempts = [
        rollout(number, float(number), [("judge", text), ("worker", "x")]) for number, text in enumerate("aabb")
    ]
    for attempt in attempts:
        attempt.rows[3]["policy"] = None  # the judge's call
    assert [fell_back for _, fell_back in of_agent(advantages(tmp_path / "1", attempts), "worker")] == [False] * 4
    for row in attempts[0].rows:
        if row["op"] == "llm" and row["policy"] is None:
            row |= {"output_messages": None, "response_ids": None}
    found = of_agent(advantages(tmp_path / "2", attempts), "worker")
    assert found == [(-2.0, True), (pytest.approx(-2 / 3), True), (-1.0, False), (1.0, False)]


def test_a_call_of_which_no_time_is_known_may_have_come_before_any_other(tmp_path: Path) -> None:
    attempts = [rollout(number, float(number), [("planner", "a"), ("worker", "x")]) for number in range(4)]
    for attempt in attempts[:2]:
        attempt.rows[3]["start_ns"] = attempt.rows[3]["end_ns"] = None
    found = advantages(tmp_path, attempts)
    for agent in ("planner", "worker"):
        assert [fell_back for _, fell_back in of_agent(found, agent)] == [True, True, False, False], agent


def test_the_same_text_of_other_tokens_is_the_same_and_a_failed_call_says_nothing(tmp_path: Path) -> None:
    attempts = [rollout(number, float(number), [("planner", "a"), ("worker", "x")]) for number in range(2)]
    attempts[0].rows[3]["response_ids"] = [7]
    planner = attempts[1].rows[1]["span_id"]
    attempts[1].call([9], [9], (0.11, 0.12), planner, status="error")
    assert of_agent(advantages(tmp_path, attempts), "worker") == [(-1.0, False), (1.0, False)]


def test_the_signal_says_which_share_fell_back(tmp_path: Path) -> None:
    rows = [
        row
        for attempt in [
            rollout(0, 1.0, [("planner", "a"), ("worker", "x")]),
            rollout(1, 3.0, [("planner", "a"), ("worker", "y")]),
            rollout(2, 8.0, [("planner", "b"), ("worker", "x")]),
        ]
        for row in attempt.rows
    ]
    lake, _ = derived(tmp_path, rows, **GIVEN)
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        found = con.sql("SELECT value FROM signals WHERE signal = 'fell_back'").fetchall()
    assert found == [(pytest.approx(1 / 6),)]


def test_other_estimators_say_nothing_of_it(tmp_path: Path) -> None:
    attempts = [rollout(number, float(number), [("planner", "a")]) for number in range(2)]
    found = advantages(tmp_path, attempts, policies=[PolicySettings(advantages="rloo")])
    assert {row["fell_back"] for row in found.values()} == {None}


def test_it_is_refused_where_whole_rollouts_are_compared(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`advantages: counterfactual` compares agents, and with `reward\.assign: final`"
    ):
        settings(tmp_path, policies=[POLICY])


AGENTS = ("critic", "planner", "worker")


def random_rollouts(draw: random.Random) -> list[tuple[float, list[tuple[str, str]]]]:
    return [
        (
            draw.choice([0.0, 0.5, 1.0]),
            [(draw.choice(AGENTS), draw.choice("ab")) for _ in range(draw.randint(1, 4))],
        )
        for _ in range(draw.randint(1, 8))
    ]


def expected(
    first: int, rollouts: list[tuple[float, list[tuple[str, str]]]]
) -> dict[tuple[str, str, int], tuple[Any, bool]]:
    """The rule in plain Python. Every step's return is the rollout's reward; one that had ended by then stands with it."""
    steps: dict[tuple[int, str, int], Any] = {}
    lengths: dict[tuple[int, str], int] = {}
    for number, (_, said) in enumerate(rollouts):
        for place, (agent, _) in enumerate(said):
            lengths[number, agent] = step = lengths.get((number, agent), 0) + 1
            others = {name: [t for n, t in said[:place] if n == name] for name in AGENTS if name != agent}
            steps[number, agent, step] = others
    found: dict[tuple[str, str, int], tuple[Any, bool]] = {}
    for (number, agent, step), others in steps.items():
        acted = [n for n in range(len(rollouts)) if (n, agent) in lengths and n != number]
        alike = [rollouts[n][0] for n in acted if steps.get((n, agent, step)) == others]
        compared = alike or [rollouts[n][0] for n in acted]
        own = rollouts[number][0]
        advantage = own - sum(compared) / len(compared) if {own, *compared} != {own} else None
        found[f"r.{first + number}", agent, step] = advantage, not alike
    return found


@of_many(examples=2)
@given(draw=strategies.randoms(use_true_random=False))
def test_it_is_what_the_rule_says_in_plain_python(
    tmp_path_factory: pytest.TempPathFactory, draw: random.Random
) -> None:
    groups = [random_rollouts(draw) for _ in range(12)]
    attempts = [
        rollout(100 * place + number, reward, said, f"g{place}")
        for place, rollouts in enumerate(groups)
        for number, (reward, said) in enumerate(rollouts)
    ]
    found = advantages(tmp_path_factory.mktemp("epoch"), attempts, spans_a_bucket=draw.choice([100, 10**6]))
    wanted = [expected(100 * place, rollouts) for place, rollouts in enumerate(groups)]
    assert {key: (row["advantage"], row["fell_back"]) for key, row in found.items()} == {
        key: (None if advantage is None else pytest.approx(advantage), fell_back)
        for of_group in wanted
        for key, (advantage, fell_back) in of_group.items()
    }


def test_only_a_run_that_uses_it_has_its_sql_in_the_key() -> None:
    files = {"advantages/counterfactual", "advantages/other_outputs"}
    assert files <= set(sql_files([POLICY]))
    assert not files & set(sql_files([PolicySettings(advantages="rloo")]))
