"""Which calls can train a policy: token ids, logprobs, sampling, version and agent have to be right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tests.unit.test_rewards import attempt, tables


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


def test_ambiguous_calls_can_be_trained_all_the_same(tmp_path: Path) -> None:
    def found(ambiguous: str) -> list[str | None]:
        made = attempt()
        made.agent("solver")
        made.agent("critic")
        made.call([1], [2])
        made.reward(1.0)
        (calls,) = tables(tmp_path / ambiguous, [made], "policy_calls", ambiguous=ambiguous)
        return [call["left_out"] for call in calls]

    assert (found("drop"), found("train")) == (["ambiguous_agent"], [None])


def test_an_agent_match_that_matches_no_call_is_said(tmp_path: Path) -> None:
    made = attempt()
    made.call([1], [2], parent=made.agent("solver"))
    made.reward(1.0)
    (unmatched,) = tables(tmp_path, [made], "unmatched_settings", agent_match="solvr", agent_exclude="critic")
    assert [(u["setting"], u["given"]) for u in unmatched] == [
        ("policies.policy.agent_exclude", "critic"),
        ("policies.policy.agent_match", "solvr"),
    ]
