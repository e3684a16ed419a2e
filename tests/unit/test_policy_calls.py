"""Which calls can train a policy: token ids, logprobs, sampling, version and agent have to be right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.lake_maker import Attempt
from tests.unit.test_rewards import attempt, tables

pytestmark = pytest.mark.slow  # many lakes


def call_reasons(home: Path, *changes: dict[str, Any], **settings: Any) -> list[str | None]:
    """left_out of one call a change, each in a rollout of its own."""
    attempts = []
    for number, change in enumerate(changes):
        made = attempt(number)
        made.call([1, 2, 3], [4, 5], parent=made.agent("solver"))
        made.rows[-1].update(change)
        made.reward(1.0)
        attempts.append(made)
    (calls,) = tables(home, attempts, "policy_calls", **settings)
    return [call["left_out"] for call in calls]


def test_calls_with_token_ids_or_logprobs_that_cannot_be_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "policies" / "policy" / "v0003"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"vocab_size": 100}')
    found = call_reasons(
        tmp_path,
        {},
        {"prompt_ids": [1, -2]},
        {"response_ids": [4, 100]},
        {"prompt_ids": []},
        {"response_logprobs": [-0.5, 0.2]},
        {"response_logprobs": [-0.5, math.nan]},
        {"response_logprobs": [-0.5, -math.inf]},
        {"response_logprobs": [-0.5, 0.0005]},
        {"choice_lengths": [1, 2]},
        {"untrainable": "redacted", "prompt_ids": None, "response_ids": None, "response_logprobs": None},
        versions={"policy": "v0003"},
    )
    assert found == [
        None,
        "bad_token_ids",
        "bad_token_ids",
        "no_token_ids",
        "bad_logprobs",
        "bad_logprobs",
        "bad_logprobs",
        None,
        "no_token_ids",
        "untrainable: redacted",
    ]


def test_calls_sampled_otherwise_than_the_policy_samples_are_left_out(tmp_path: Path) -> None:
    plain = '{"temperature":0.7,"top_p":1.0,"top_k":0,"min_p":0.0,"presence_penalty":0.0,"repetition_penalty":1.0,"max_tokens":9}'
    found = call_reasons(
        tmp_path,
        {"sampling": plain},
        {"sampling": None},
        {"sampling": "no json"},
        {"sampling": '{"temperature":0}'},
        {"sampling": '{"temperature":0.7,"top_p":0.9}'},
        {"sampling": '{"top_k":20}'},
        {"sampling": '{"repetition_penalty":1.1}'},
        {"sampling": '{"logit_bias":{"5":-100}}'},
        {"sampling": '{"logit_bias":{},"bad_words":[]}'},
        {"sampling": '{"top_k":"many"}'},
        policies=[{"sampling": {"temperature": 0.7}}],
    )
    assert [reason is None for reason in found] == [True, True, True, False, False, False, False, False, True, True]
    assert set(found) == {None, "other_sampling"}
    found = call_reasons(
        tmp_path / "more",
        {"sampling": '{"watermarking":true}'},
        {"sampling": '{"thinking_token_budget":8}'},
        {"sampling": '{"vllm_xargs":{"processor":"mine"}}'},
        {"sampling": '{"watermarking":false,"vllm_xargs":{}}'},
    )
    assert found == ["other_sampling"] * 3 + [None]


def test_what_a_request_left_open_was_sampled_by_the_models_own_generation_config(tmp_path: Path) -> None:
    """As production agents ask, whose sampling stays theirs: vLLM fills it in, and no request says so."""
    folder = tmp_path / "policies" / "policy" / "v0003"
    folder.mkdir(parents=True)
    neutral = '{"temperature":1.0,"top_p":1.0,"top_k":0,"min_p":0.0,"repetition_penalty":1.0}'
    for config, left_out in (({"top_k": 20}, "other_sampling"), ({"eos_token_id": 2, "top_p": None}, None)):
        (folder / "generation_config.json").write_text(json.dumps(config))
        calls = [{"sampling": text} for text in ('{"max_tokens":9}', "{}", neutral)]
        assert call_reasons(tmp_path, *calls, versions={"policy": "v0003"}) == [left_out, left_out, None]


def test_calls_of_old_versions_are_stale(tmp_path: Path) -> None:
    found = call_reasons(
        tmp_path,
        {"policy_version": "v0007"},
        {"policy_version": "v0006"},
        {"policy_version": "v0005"},
        {"policy_version": "v0005,v0007"},
        {"policy_version": None},
        max_version_lag=1,
        versions={"policy": "v0007"},
    )
    assert found == [None, None, "stale", "stale", "unknown_version"]


def test_an_ambiguous_call_is_left_out_only_where_it_matters_whose_it_is(tmp_path: Path) -> None:
    def found(ambiguous: str, **settings: Any) -> list[str | None]:
        made = attempt()
        made.agent("solver")
        made.agent("critic")
        made.call([1], [2])
        made.reward(1.0)
        home = tmp_path / f"{ambiguous} {settings}"
        (calls,) = tables(home, [made], "policy_calls", ambiguous=ambiguous, **settings)
        return [call["left_out"] for call in calls]

    assert (found("drop"), found("train")) == ([None], [None])
    assert (found("drop", assign="nearest"), found("train", assign="nearest")) == (["ambiguous_agent"], [None])
    assert (found("drop", agent_match="solver"), found("drop", agent_match="s|c")) == (["ambiguous_agent"], [None])
    assert found("drop", agent_match="writer") == ["agent_not_matched"]


def test_an_example_may_have_been_said_as_a_grammar_had_it_but_must_be_whole(tmp_path: Path) -> None:
    found = {}
    for algorithm in ("sft", "grpo"):
        made = attempt()
        solver = made.agent("solver")
        for number, reason in enumerate(("guided", "greedy", "aborted")):
            at = (0.2 + number / 10, 0.25 + number / 10)
            made.call([1], [2], at, parent=solver, untrainable=reason)
        made.reward(1.0)
        (calls,) = tables(tmp_path / algorithm, [made], "policy_calls", algorithm=algorithm)
        found[algorithm] = [(call["left_out"], call["other_sampling"]) for call in calls]
    left_out = [(f"untrainable: {reason}", False) for reason in ("guided", "greedy", "aborted")]
    assert found == {"sft": [(None, True), (None, True), left_out[2]], "grpo": left_out}


def test_calls_sampled_otherwise_can_be_trained_all_the_same_and_are_flagged(tmp_path: Path) -> None:
    made = attempt()
    solver = made.agent("solver")
    made.call([1], [2], parent=solver, sampling='{"temperature":0.3}')
    made.call([3], [4], (0.4, 0.5), parent=solver, sampling='{"temperature":1.0}')
    made.reward(1.0)
    (calls,) = tables(tmp_path, [made], "policy_calls", other_sampling="train")
    assert [(call["left_out"], call["other_sampling"]) for call in calls] == [(None, True), (None, False)]
    (calls,) = tables(tmp_path / "drop", [made], "policy_calls")
    assert [(call["left_out"], call["other_sampling"]) for call in calls] == [("other_sampling", True), (None, False)]


def test_an_ambiguous_call_trains_a_policy_that_takes_every_agent_that_could_have_made_it(tmp_path: Path) -> None:
    """Two solvers of other names and a critic, each at its own time; a supervisor around all is nobody's rival."""
    made = attempt(at=(0.0, 1.0))
    boss = made.agent("boss", (0.05, 0.98))
    made.agent("solver-1", (0.10, 0.60), boss)
    made.agent("solver-2", (0.10, 0.90), boss)
    made.agent("critic", (0.70, 0.90), boss)
    made.call([1], [2], (0.30, 0.40))  # in the time of both solvers
    made.call([3], [4], (0.75, 0.80))  # of the second, and of the critic
    inside = made.span("http", (0.30, 0.45), trace_id="c" * 32)
    made.call([5], [6], (0.35, 0.40), inside, trace_id="c" * 32)  # what it lies under is in the time of both solvers
    made.reward(1.0)

    def found(number: int, **settings: Any) -> list[str | None]:
        calls, unmatched = tables(
            tmp_path / str(number), [made], "policy_calls", "unmatched_settings", advantages="reinforce", **settings
        )
        assert {call["method"] for call in calls} <= {"ambiguous", "declared"}
        reasons = [call["left_out"] for call in calls]
        assert None not in reasons or "policies.policy.agent_match" not in [u["setting"] for u in unmatched]
        return reasons

    # By start: the call in the time of both solvers, that under the span, the one the critic may have made.
    assert found(0, agent_match="solver", assign="nearest") == ["ambiguous_agent"] * 3
    assert found(8, agent_match="solver") == [None, None, "ambiguous_agent"]
    assert found(1, agent_match="solver", ambiguous="train") == [None, None, "ambiguous_agent"]
    assert found(2, agent_match="solver-1", ambiguous="train") == ["ambiguous_agent"] * 2 + ["agent_not_matched"]
    assert found(3, agent_match="solver|critic", ambiguous="train") == [None] * 3
    assert found(4, agent_exclude="critic", ambiguous="train") == [None, None, "ambiguous_agent"]
    assert found(5, agent_exclude="solver|critic", ambiguous="train") == ["agent_excluded"] * 3
    assert found(6, agent_match="boss", ambiguous="train") == ["agent_not_matched"] * 3
    assert found(7, ambiguous="train") == [None] * 3


def test_a_truncated_reply_is_not_trained_where_the_policy_says_so_and_its_reward_counts(tmp_path: Path) -> None:
    attempts = []
    for number, (cut, reward) in enumerate([(True, 0.0), (False, 1.0)]):
        made = attempt(number)
        solver = made.agent("solver")
        made.call([1], [2, 3], parent=solver, finish_reasons='["length"]' if cut else '["stop"]')
        made.call([1], [4, 5], (0.4, 0.5), solver, choice_lengths=[1, 1], finish_reasons='["stop", "length"]')
        made.reward(reward)
        attempts.append(made)
    for truncated, left_out in (("train", []), ("drop", [(0, 0), (1, 1), (3, 1)])):
        exclusions, sequences, calls = tables(
            tmp_path / truncated, attempts, "exclusions", "sequences", "policy_calls", truncated=truncated
        )
        ids = sorted(c["call_id"] for c in calls)
        assert [(ids.index(e["call_id"]), e["choice"]) for e in exclusions] == left_out
        assert {e["reason"] for e in exclusions} <= {"truncated"}
        assert len(sequences) == 6 - len(left_out)
        assert {round(s["advantage"], 2) for s in sequences} == {-0.71, 0.71}, "the group has both rollouts"


def test_every_choice_that_is_not_trained_has_its_reason(tmp_path: Path) -> None:
    made = attempt()
    solver = made.agent("solver")
    made.call([1], [2, 3, 4], parent=solver, choice_lengths=[1, 0, 2])
    made.call([5] * 14, [6, 7, 8, 9], (0.4, 0.5), parent=solver, choice_lengths=[1, 3])
    made.call([1], [2, 3], (0.6, 0.7), parent=solver, choice_lengths=[3, -1])
    made.reward(1.0)
    exclusions, sequences = tables(
        tmp_path, [made], "exclusions", "sequences", advantages="reinforce", training={"max_sequence_tokens": 16}
    )
    calls = sorted({e["call_id"] for e in exclusions})
    assert [(calls.index(e["call_id"]), e["choice"], e["reason"]) for e in exclusions] == [
        (0, 1, "empty_response"),
        (1, 1, "sequence_too_long"),
        (2, 0, "no_token_ids"),
    ]
    assert sorted(t for s in sequences for t in s["call_ids"]) == [f"{calls[0]}.0", f"{calls[0]}.2", f"{calls[1]}.0"]


def test_calls_of_attempts_that_do_not_count_are_excluded_for_that(tmp_path: Path) -> None:
    def executed(name: str, outcome: str | None = None, end: float = 1.0, root: bool = True) -> Attempt:
        made = Attempt("r.0", name)
        made.span("rollout.start", (0, 0), op="rollout.start", run="run", epoch=0, mode="train")
        if root:
            made.root(outcome, at=(0.0, end))  # type: ignore[arg-type]
        made.call([1, 2], [3, 4], parent=made.agent("solver"), choice_lengths=[1, 1])
        same = made.rows[-1]["response_id"]
        made.span("ChatCompletion", (0.2, 0.3), op="llm", response_id=same)
        return made

    lost = Attempt("r.0", "lost")
    lost.call([1], [2], attempt_id=None)
    stranger = Attempt("r.stranger", "s")
    stranger.call([1], [2])
    attempts = [
        executed("first", "infrastructure", 0.9),
        executed("second", "ok", 1.0),
        executed("third", "ok", 2.0),
        executed("fourth", None, 3.0),
        executed("fifth", root=False),
        lost,
        stranger,
    ]
    (exclusions,) = tables(tmp_path, attempts, "exclusions", advantages="reinforce", failure_reward=None)
    assert {(e["attempt_id"], e["choice"], e["reason"]) for e in exclusions if e["call_id"] is None} == {
        ("first", 0, "infrastructure"),
        ("first", 1, "infrastructure"),
        ("third", 0, "superseded"),
        ("third", 1, "superseded"),
        ("fourth", 0, "no_outcome"),
        ("fourth", 1, "no_outcome"),
        ("fifth", 0, "unfinished"),
        ("fifth", 1, "unfinished"),
        (None, 0, "no_attempt"),
    }
    assert {e["reason"] for e in exclusions if e["attempt_id"] == "second"} == {"no_reward"}


def test_an_agent_match_that_matches_no_call_is_said(tmp_path: Path) -> None:
    made = attempt()
    made.call([1], [2], parent=made.agent("solver"))
    made.reward(1.0)
    (unmatched,) = tables(tmp_path, [made], "unmatched_settings", agent_match="solvr", agent_exclude="critic")
    assert [(u["setting"], u["given"]) for u in unmatched] == [
        ("policies.policy.agent_exclude", "critic"),
        ("policies.policy.agent_match", "solvr"),
    ]
