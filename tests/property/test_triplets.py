"""No call is lost, no token is trained twice, and no order of the spans changes a byte; over random epochs."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from tests import lake_maker
from tests.examples import of_many
from tests.lake_maker import Attempt, derived, received_anew, table
from tests.unit.test_sequences import Calls

pytestmark = pytest.mark.slow  # many lakes

ROLLOUTS = 9  # an example; they share one derivation
ASSIGN = ({"assign": "final"}, {"assign": "nearest"}, {"assign": "discounted", "gamma": 0.9})
RULES = [{"name": "failing-tool", "value": -0.1, "op": "tool", "status": "error"}]
SPOILED = (
    {"policy": "judge"},
    {"prompt_ids": None},
    {"status": "error"},
    {"untrainable": "greedy"},
    {"response_logprobs": [0.5]},
    {"sampling": '{"temperature": 0}'},
    {"policy_version": "v0001"},
)


def random_attempt(draw: random.Random, number: int, execution: int = 0) -> Attempt:
    """Agents side by side, each in a conversation that goes on, branches, is rewritten; tools; rewards; broken calls."""
    attempt = Attempt(f"r.{number}", f"a{number}.{execution}", group=f"g{number // 3}")
    attempt.span("rollout.start", (0, 0), op="rollout.start", run="run", epoch=0, mode="train")
    if draw.random() < 0.9:  # else it never ended
        outcome = draw.choice(["ok", "ok", "ok", "error", "infrastructure", None])
        attempt.root(outcome, at=(0.0, 1.0 + draw.choice([0, execution])))  # type: ignore[arg-type]
    agents = [attempt.agent(name) for name in draw.sample(["solver", "critic", "judge"], draw.randint(1, 2))]
    histories: dict[str, list[list[int]]] = {agent: [[len(agent), 1]] for agent in agents}
    for turn in range(draw.randint(1, 5)):
        agent = draw.choice(agents)
        start = 0.2 + turn * 0.1
        prompt = [*draw.choice(histories[agent]), draw.randint(1, 3)]
        several = draw.choice([1, 1, 1, 2, 3])
        choices = [[draw.randint(1, 3) for _ in range(draw.randint(several == 1, 3))] for _ in range(several)]
        response = [token for choice in choices for token in choice]
        lengths: dict[str, Any] = {"choice_lengths": [len(choice) for choice in choices]} if several > 1 else {}
        linked = draw.random() < 0.9  # else time has to tell, and two agents were at work
        call = attempt.call(prompt, response, (start, start + 0.05), agent if linked else None, **lengths)
        attempt.rows[-1]["policy_version"] = "v0003"
        if draw.random() < 0.2:
            attempt.rows[-1].update(draw.choice(SPOILED))
        elif draw.random() < 0.2:
            response_id = attempt.rows[-1]["response_id"]
            attempt.span("ChatCompletion", (start, start + 0.05), agent, op="llm", response_id=response_id)
        histories[agent] += [[*prompt, *choice] for choice in choices]
        if draw.random() < 0.4:
            attempt.span("tool", (start + 0.06, start + 0.07), call, op="tool", status=draw.choice(["ok", "error"]))
        if draw.random() < 0.4:
            reward = {"op": "reward", "reward": draw.choice([0.1, 0.7, float("nan")]), "reward_source": "agent"}
            attempt.span("reward", (start + 0.08, start + 0.08), draw.choice([agent, None]), **reward)
    if draw.random() < 0.8:
        attempt.reward(draw.choice([0.0, 0.3, 1.0]))
    return attempt


def random_epoch(draw: random.Random) -> list[dict[str, Any]]:
    """Rollouts, some of them executed more than once."""
    executions = [(number, again) for number in range(ROLLOUTS) for again in range(draw.choice([1, 1, 2, 3]))]
    return [row for number, again in executions for row in random_attempt(draw, number, again).rows]


def random_settings(draw: random.Random) -> dict[str, Any]:
    assign = draw.choice(ASSIGN)
    estimators = ["grpo", "dr_grpo", "rloo", "reinforce", "reinforce_pp"]
    return assign | {
        "advantages": draw.choice(estimators + ["counterfactual"] * (assign["assign"] != "final")),
        "merge": draw.choice(["prefix", "prefix", "per_call"]),
        "too_long": draw.choice(["drop_calls", "drop_rollout"]),
        "ambiguous": draw.choice(["drop", "train"]),
        "other_sampling": draw.choice(["drop", "train"]),
        "agent_match": draw.choice(["", "", "solver"]),
        "max_version_lag": 1,
        "air": draw.choice(["off", RULES]),
        "failure_reward": draw.choice([0.0, None]),
        "training": {"max_sequence_tokens": 16},
        "versions": {"policy": "v0003"},
    }


@of_many(examples=6)
@given(draw=strategies.randoms(use_true_random=False))
def test_every_call_is_trained_or_left_out_for_a_reason_and_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, draw: random.Random
) -> None:
    rows = random_epoch(draw)
    changes = random_settings(draw)
    lake, epoch = derived(tmp_path_factory.mktemp("epoch"), rows, **changes)
    calls = {row["call_id"]: row for row in table(lake, epoch, "policy_calls")}
    sequences, merges = table(lake, epoch, "sequences"), table(lake, epoch, "merges")
    exclusions = table(lake, epoch, "exclusions")

    counted = {(a["rollout_id"], a["attempt_id"]) for a in table(lake, epoch, "scored_attempts") if a["counts"]}
    twins = {r["node"] for r in table(lake, epoch, "span_tree") if r["op"] == "llm" and r["twin_of"] is not None}
    seen = [r for r in rows if r["op"] == "llm" and (r["rollout_id"], r["attempt_id"]) in counted]
    assert len(calls) == len(seen) - len(twins)

    trained = Counter(triplet for sequence in sequences for triplet in sequence["call_ids"])
    assert set(trained.values()) <= {1}
    trained_calls = {int(triplet.split(".")[0]) for triplet in trained}
    assert trained_calls | {row["call_id"] for row in exclusions if row["call_id"] is not None} == set(calls)
    assert all(row["reason"] for row in exclusions)

    by_span = {(r["attempt_id"], r["span_id"]): r for r in rows}
    # Over all executions, counted or not: each choice of each call is trained or excluded, once.
    trained_choices = {
        (calls[call]["attempt_id"], calls[call]["span_id"], choice)
        for call, choice in (map(int, triplet.split(".")) for triplet in trained)
    }
    excluded = Counter((row["attempt_id"], row["span_id"], row["choice"]) for row in exclusions)
    assert set(excluded.values()) <= {1} and not excluded.keys() & trained_choices
    answered = {(r["attempt_id"], r["response_id"]): len(r.get("choice_lengths") or [0]) for r in rows if r["policy"]}
    ended: dict[Any, set[int]] = {key: set() for key in answered}
    for attempt_id, span_id, choice in [*excluded, *trained_choices]:
        ended[attempt_id, by_span[attempt_id, span_id]["response_id"]].add(choice)
    assert all(choices in ({0}, set(range(answered[key]))) for key, choices in ended.items())
    assert all(
        ended[a, by_span[a, s]["response_id"]] == set(range(answered[a, by_span[a, s]["response_id"]]))
        for a, s, _ in trained_choices
    )

    sampled = 0
    for triplet in trained:
        call, choice = (int(part) for part in triplet.split("."))
        row = by_span[calls[call]["attempt_id"], calls[call]["span_id"]]
        sampled += (row.get("choice_lengths") or [len(row["response_ids"])])[choice]
    assert sum(sum(s["loss_mask"]) for s in sequences) == sampled
    for sequence in sequences:
        lengths = {len(sequence[name]) for name in ("token_ids", "loss_mask", "logprobs", "advantages")}
        assert lengths == {len(sequence["token_ids"])} and lengths.pop() <= 16
        assert not any(sequence["loss_mask"][: sequence["prompt_length"]])
        assert all(bool(p) == bool(m) for p, m in zip(sequence["logprobs"], sequence["loss_mask"], strict=True))
    assert {(m["call_id"], m["choice"]) for m in merges} >= {
        (int(t.split(".")[0]), int(t.split(".")[1])) for t in trained
    }


@of_many(examples=3)  # the first is the simplest there is
@given(draw=strategies.randoms(use_true_random=False))
def test_no_order_of_the_spans_and_no_cut_into_buckets_changes_a_byte(
    tmp_path_factory: pytest.TempPathFactory, draw: random.Random
) -> None:
    rows = random_epoch(draw)
    changes = random_settings(draw)
    _, epoch = derived(tmp_path_factory.mktemp("epoch"), rows, **changes)
    expected = {name: t.digest for name, t in epoch.tables.items()}
    lake, shuffled = derived(tmp_path_factory.mktemp("shuffled"), received_anew(rows, draw), **changes)
    assert {name: t.digest for name, t in shuffled.tables.items()} == expected
    changes.pop("versions")
    bucket = len(rows) // draw.randint(2, 4)
    derive(Epoch(lake_maker.settings(lake.root.parent, **changes), shuffled), "cut", spans_a_bucket=bucket)
    assert {name: t.digest for name, t in shuffled.tables.items()} == expected


tokens = strategies.lists(strategies.integers(0, 1), min_size=1, max_size=4)
conversation = strategies.lists(strategies.tuples(tokens, tokens), min_size=1, max_size=8)


@of_many(examples=6)
@given(attempts=strategies.lists(conversation, min_size=6, max_size=6))
def test_a_call_follows_what_comparing_all_pairs_finds(attempts: list[list[tuple[list[int], list[int]]]]) -> None:
    made, expected = Calls(), {}
    for number, calls in enumerate(attempts):
        first = len(made.rows)
        for later, (prompt, response) in enumerate(calls):
            made.call(prompt, response, attempt=f"a{number}")
            held = [
                (len(p) + len(r), first + earlier)
                for earlier, (p, r) in enumerate(calls[:later])
                if prompt[: len(p + r)] == p + r
            ]
            if held:
                expected[first + later] = max(held)[1]
    found = made.merged(Path("unused")).sql("SELECT call_id, earlier_call FROM followed_calls").fetchall()
    assert dict(found) == expected
