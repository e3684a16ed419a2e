"""From spans to sequences: rewards, advantages, sequences, and what is left out, as each SQL file promises in its header."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import PolicySettings, SettingsError
from lightning_core.epoch.patterns import check_patterns
from tests import lake_maker
from tests.lake_maker import Attempt, derived, table
from tests.scenarios import Epoch, Scenarios, group, reasons, rows

SCENARIOS = Scenarios()
scenario = SCENARIOS.add


@pytest.fixture(scope="module")
def epoch(tmp_path_factory: pytest.TempPathFactory) -> Epoch:
    return SCENARIOS.derived(tmp_path_factory.mktemp("sql"))


@scenario
def three_rewards() -> list[Attempt]:
    return group([0.0, 1.0, 1.0])


def test_advantages_are_reward_less_mean_in_sample_standard_deviations(epoch: Epoch) -> None:
    deviation = math.sqrt(((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 2)
    found = [row["advantage"] for row in epoch["three_rewards"]["advantages"]]
    assert found == pytest.approx([-2 / 3 / (deviation + 1e-4), 1 / 3 / (deviation + 1e-4), 1 / 3 / (deviation + 1e-4)])


@scenario
def two_rewards() -> list[Attempt]:
    return group([0.0, 1.0])


def test_a_sequence_has_one_mask_logprob_and_advantage_for_each_token(epoch: Epoch) -> None:
    first, second = epoch["two_rewards"]["sequences"]
    assert first["token_ids"] == [1, 2, 3, 10, 4]
    assert first["prompt_length"] == 3
    assert first["loss_mask"] == [0, 0, 0, 1, 1]
    assert first["logprobs"] == [0, 0, 0, -0.5, -0.5]
    assert first["advantages"][:3] == [0, 0, 0]
    assert first["advantages"][3] < 0 < second["advantages"][3]


@scenario
def no_spread() -> list[Attempt]:
    return group([0.3, 0.3, 0.3])


def test_a_group_without_spread_is_left_out_and_counted(epoch: Epoch) -> None:
    assert [row["reason"] for row in epoch["no_spread"]["exclusions"]] == ["no_spread"] * 3


@scenario
def alone() -> list[Attempt]:
    return group([0.3])


def test_a_group_of_one_is_left_out_and_counted(epoch: Epoch) -> None:
    assert [row["reason"] for row in epoch["alone"]["exclusions"]] == ["group_of_one"]


@scenario
def extended() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        first = next(r for r in attempt.rows if r["op"] == "llm")
        attempt.call([*first["prompt_ids"], *first["response_ids"], 7, 8], [9], at=(0.4, 0.5))
    return attempts


def test_a_call_that_extends_another_joins_its_sequence_with_context_untrained(epoch: Epoch) -> None:
    merged = epoch["extended"]["sequences"]
    assert [len(s["call_ids"]) for s in merged] == [2, 2]
    assert merged[0]["token_ids"] == [1, 2, 3, 10, 4, 7, 8, 9]
    assert merged[0]["loss_mask"] == [0, 0, 0, 1, 1, 0, 0, 1]
    assert len(merged[0]["logprobs"]) == len(merged[0]["advantages"]) == 8


@scenario
def extended_twice() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        first = next(r for r in attempt.rows if r["op"] == "llm")
        history = [*first["prompt_ids"], *first["response_ids"]]
        attempt.call([*history, 7], [9], at=(0.4, 0.5))
        attempt.call([*history, 8], [6], at=(0.6, 0.7))
    return attempts


def test_of_two_calls_that_extend_the_same_one_the_second_begins_its_own_sequence(epoch: Epoch) -> None:
    merges = epoch["extended_twice"]["merges"]
    assert [m["reason"] for m in merges] == ["first_call", "continues", "branch"] * 2
    trained = sum(sum(s["loss_mask"]) for s in epoch["extended_twice"]["sequences"])
    assert trained == 2 * (2 + 1 + 1), "every sampled token is trained in exactly one sequence"


@scenario
def two_choices() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        call = next(r for r in attempt.rows if r["op"] == "llm")
        call |= {"response_ids": [20, 21, 22], "response_logprobs": [-0.1, -0.2, -0.3], "choice_lengths": [1, 2]}
    return attempts


def test_each_choice_of_a_call_is_a_triplet_of_its_own(epoch: Epoch) -> None:
    assert [s["token_ids"][3:] for s in epoch["two_choices"]["sequences"]] == [[20], [21, 22]] * 2


def test_a_sequence_that_is_too_long_is_counted(tmp_path: Path) -> None:
    policy = PolicySettings(training={"max_sequence_tokens": 16})
    attempts = group([0.0, 1.0, 0.5])
    call = next(r for r in attempts[0].rows if r["op"] == "llm")
    call |= {"prompt_ids": list(range(20))}
    assert reasons(tmp_path, attempts, policies=[policy]) == ["sequence_too_long"]


def test_rollouts_that_are_not_planned_any_more_do_not_count(tmp_path: Path) -> None:
    lake, epoch = derived(tmp_path, rows(group([0.0, 0.5, 1.0])), planned=["r.0", "r.1"])
    assert [r["rollout_id"] for r in table(lake, epoch, "rollout_rewards")] == ["r.0", "r.1"]


@scenario
def former_grader() -> list[Attempt]:
    attempts = group([0.0, 1.0, 0.5])
    attempts[1].rows[-1]["attributes"] = [("lightning.reward.grader", "the one before")]
    return attempts


def test_a_former_graders_rewards_do_not_count(epoch: Epoch) -> None:
    assert [row["reason"] for row in epoch["former_grader"]["exclusions"]] == ["no_reward"]


@scenario
def failures() -> list[Attempt]:
    attempts = group([1.0, 1.0])
    attempts[0].rows[0]["outcome"] = "timeout"
    broken = Attempt("r.9", "a9")
    broken.root("infrastructure")
    broken.call([1, 2, 3], [4])
    return [*attempts, broken]


def test_the_agents_failure_gets_failure_reward_and_ours_is_not_counted(epoch: Epoch) -> None:
    assert [(r["rollout_id"], r["reward"]) for r in epoch["failures"]["rollout_rewards"]] == [
        ("r.0", 0.0),
        ("r.1", 1.0),
    ]
    assert len(epoch["failures"]["sequences"]) == 2


def test_failure_reward_null_leaves_failed_attempts_out(tmp_path: Path) -> None:
    attempts = group([1.0, 1.0, 0.0])
    attempts[0].rows[0]["outcome"] = "error"
    assert reasons(tmp_path, attempts, failure_reward=None) == ["failed_attempt"]


def test_of_two_attempts_that_ended_the_earlier_counts(tmp_path: Path) -> None:
    attempts = group([0.0, 1.0])
    late = Attempt("r.0", "b")
    late.root(at=(0.0, 5.0))
    late.call([1, 2, 3], [99])
    late.reward(1.0)
    lake, epoch = derived(tmp_path, rows([*attempts, late]))
    scored = {r["attempt_id"]: r["left_out"] for r in table(lake, epoch, "scored_attempts")}
    assert scored == {"a0": None, "a1": None, "b": "superseded"}
    assert all(99 not in s["token_ids"] for s in table(lake, epoch, "sequences"))


@scenario
def several_rewards() -> list[Attempt]:
    attempts = group([0.0, 1.0])
    attempts[0].reward(0.7, at=0.96)
    attempts[0].reward(math.nan, at=0.97)
    attempts[0].reward(0.1, at=0.98, name="style")
    return attempts


def test_the_last_finite_reward_counts_whoever_gave_it(epoch: Epoch) -> None:
    assert [r["reward"] for r in epoch["several_rewards"]["rollout_rewards"]] == [0.7, 1.0]


def test_reward_match_narrows_who_may_give_it(tmp_path: Path) -> None:
    attempts = group([0.2, 0.4])
    for attempt in attempts:
        critic = attempt.agent("critic", at=(0.85, 0.9))
        attempt.span("score", (0.88, 0.88), critic, op="reward", reward=0.9, reward_name="reward")
    lake, epoch = derived(tmp_path, rows(attempts), reward_match="critic")
    assert [r["reward"] for r in table(lake, epoch, "rollout_rewards")] == [0.9, 0.9]


UNTRAINABLE: dict[str, tuple[dict[str, Any], str]] = {
    "other_policy": ({"policy": "judge"}, "other_policy"),
    "no_policy": ({"policy": None}, "other_policy"),
    "no_prompt": ({"prompt_ids": None}, "no_token_ids"),
    "too_few_logprobs": ({"response_logprobs": [-0.5]}, "no_token_ids"),
    "empty": ({"response_ids": [], "response_logprobs": []}, "empty_response"),
    "failed": ({"status": "error"}, "failed_call"),
    "greedy": ({"untrainable": "greedy"}, "untrainable: greedy"),
}


def one_call_of_three(change: dict[str, Any]) -> list[Attempt]:
    attempts = group([0.0, 1.0, 0.5])
    next(r for r in attempts[0].rows if r["op"] == "llm").update(change)
    return attempts


SCENARIOS.builds |= {name: partial(one_call_of_three, change) for name, (change, _) in UNTRAINABLE.items()}


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_a_call_that_cannot_train_is_counted_with_its_reason(epoch: Epoch, name: str) -> None:
    assert [row["reason"] for row in epoch[name]["exclusions"]] == [UNTRAINABLE[name][1]]


@scenario
def no_reward() -> list[Attempt]:
    attempts = group([0.0, 1.0, 0.5])
    attempts[0].rows = [r for r in attempts[0].rows if r["op"] != "reward"]
    return attempts


def test_an_attempt_without_reward_is_left_out(epoch: Epoch) -> None:
    assert [row["reason"] for row in epoch["no_reward"]["exclusions"]] == ["no_reward"]


def test_each_policy_trains_on_the_calls_it_sampled(tmp_path: Path) -> None:
    lora = {"rank": 4}
    policies = [PolicySettings(name="a", lora=lora), PolicySettings(name="b", lora=lora)]
    attempts = group([0.0, 1.0], policy="a")
    for attempt in attempts:
        attempt.call([5, 6], [7], at=(0.5, 0.6), policy="b")
    lake, epoch = derived(tmp_path, rows(attempts), policies=policies)
    assert [s["policy"] for s in table(lake, epoch, "sequences")] == ["a", "b", "a", "b"]


@scenario
def silent() -> list[Attempt]:
    attempts = group([0.0, 1.0, 0.5])
    next(r for r in attempts[0].rows if r["op"] == "llm").update({"policy": None, "model": "gpt-5"})
    attempts[1].rows = [r for r in attempts[1].rows if r["op"] != "llm"]
    return attempts


def test_a_rollout_that_calls_no_policy_is_shown(epoch: Epoch) -> None:
    assert [(r["rollout_id"], r["calls"]) for r in epoch["silent"]["silent_rollouts"]] == [("r.0", 1), ("r.1", 0)]


def test_an_evaluation_has_rewards_and_no_sequences(tmp_path: Path) -> None:
    attempts = group([0.0, 1.0])
    for attempt in attempts:
        attempt.rows[0]["mode"] = "evaluate"
    lake, epoch = derived(tmp_path, rows(attempts), mode="evaluate")
    assert [r["success"] for r in table(lake, epoch, "rollout_rewards")] == [False, True]
    assert "sequences" not in epoch.tables


def test_an_epoch_without_spans_gives_empty_tables(tmp_path: Path) -> None:
    _, epoch = derived(tmp_path, [])
    assert {name: t.rows for name, t in epoch.tables.items() if t.rows} == {}


@pytest.mark.parametrize("pattern", ["(?=a)", "(", r"(a)\1"])
def test_a_pattern_re2_refuses_names_its_setting(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(SettingsError, match=r"policies\.0\.agent_match"):
        check_patterns(lake_maker.settings(tmp_path, agent_match=pattern))
