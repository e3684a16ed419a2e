"""Numbers, times and ids that no honest agent sends: an epoch is derived all the same, and what is left out says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lightning_core.config import AirRule, LoraSettings, PolicySettings
from lightning_core.epoch import derive
from tests.lake_maker import Attempt, derived
from tests.unit.test_rewards import attempt, emit, tables

pytestmark = pytest.mark.slow  # it makes many lakes

MOST = 2**63 - 1
TIMES = [(MOST - 5, MOST), (-MOST - 1, -MOST), (MOST, -MOST), (None, MOST), (MOST, None), (0, MOST), (-MOST, 5)]


@pytest.mark.parametrize("assign", [{}, {"assign": "nearest"}, {"assign": "discounted", "gamma": 0.5}])
def test_no_time_makes_an_epoch_underivable(tmp_path: Path, assign: dict[str, Any]) -> None:
    def odd(made: Attempt, **columns: Any) -> str:
        return made.span(**(columns | {"start_ns": start, "end_ns": end}))

    attempts = []
    for number, (start, end) in enumerate(TIMES):
        made = attempt(number)
        solver = made.agent("solver", (0.1, 0.4))
        made.agent("other", (0.1, 0.9))
        made.call([1], [2], (0.2, 0.3), solver)
        agent = odd(made, name="invoke_agent late", op="agent", agent_name="late")
        odd(made, name="under it", parent=agent)
        odd(made, name="nobody's")
        odd(made, name="of a parent that never came", parent="f" * 16)
        odd(made, name="linked", links=f'[{{"span_id": "{solver}"}}]')
        asks = '[{"role": "assistant", "tool_calls": [{"id": "t"}]}]'
        made.call([3], [4], (0.2, 0.3), None, response_id=None, output_messages=asks, start_ns=start, end_ns=end)
        odd(made, name="tool", op="tool", tool_call_id="t", tool_name="t", status="error")
        odd(made, name="chat", op="llm", output_messages=asks)
        for parent in (None, agent, solver):
            odd(made, name="reward", parent=parent, op="reward", reward=1.0, reward_name="reward", trace_id="9" * 32)
        emit(made, float(number), 0.35, solver)
        attempts.append(made)
    calls, tree = tables(
        tmp_path, attempts, "policy_calls", "span_tree", air=[{"name": "a", "value": 1.0, "op": "tool"}], **assign
    )
    assert [c["left_out"] for c in calls if c["agent"] == "solver"][:1] == [None]
    assert len(tree) == sum(len(made.rows) + 1 for made in attempts)  # and a missing parent in each


@pytest.mark.parametrize("spans_a_bucket", [600_000, 4, 1])
def test_no_count_of_tokens_makes_an_epoch_underivable(tmp_path: Path, spans_a_bucket: int) -> None:
    counts = [
        (0, 0),
        (MOST, 5),
        (MOST, MOST),
        (-(10**12), 0),
        (0, 0),
        (-MOST - 1, -MOST - 1),
        (10**12, -(10**12)),
        (0, 0),
    ]
    attempts = []
    for number, odd in enumerate(counts):
        made = attempt(number)
        made.call([1], [2])
        made.call([3], [4], policy=None, input_tokens=odd[0], output_tokens=odd[1])
        made.reward(float(number))
        attempts.append(made)
    (sequences,) = tables(tmp_path, attempts, "sequences", spans_a_bucket=spans_a_bucket)
    assert [s["rollout_id"] for s in sequences] == [f"r.{number}" for number in range(8)]


def test_a_version_that_is_no_number_of_ours_is_unknown(tmp_path: Path) -> None:
    made = attempt()
    versions = ["v99999999999999999999", "v0001,v99999999999999999999"]
    for version in versions:
        made.call([1], [2], policy_version=version)
    made.call([1], [4], policy="another", policy_version="v99999999999999999999")
    made.reward(1.0)
    settings: dict[str, Any] = {"advantages": "reinforce", "versions": {"policy": "v0003"}}
    (calls,) = tables(tmp_path / "any", [made], "policy_calls", **settings)
    assert {c["policy_version"]: c["left_out"] for c in calls if c["policy"] == "policy"} == dict.fromkeys(versions)
    (calls,) = tables(tmp_path / "lag", [made], "policy_calls", max_version_lag=1, **settings)
    found = {c["policy_version"]: c["left_out"] for c in calls if c["policy"] == "policy"}
    assert found == dict(zip(versions, ("unknown_version", "stale"), strict=True))


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
@pytest.mark.parametrize("high", [1e300, 1.7e308])
def test_rewards_too_large_to_compare_are_not_trained_on(tmp_path: Path, estimator: str, high: float) -> None:
    attempts = []
    for number, value in enumerate((0.0, high, high)):
        made = attempt(number)
        made.call([1], [2])
        made.reward(value)
        attempts.append(made)
    found = tables(tmp_path, attempts, "exclusions", "sequences", advantages=estimator)
    assert [e["reason"] for e in found[0]] == ["advantage_not_finite"] * 3
    assert found[1] == []


@pytest.mark.parametrize("estimator", ["grpo", "reinforce"])
def test_a_rollout_of_no_group_says_so(tmp_path: Path, estimator: str) -> None:
    attempts = []
    for number in range(3):
        made = attempt(number)
        made.rows[0]["group_id"] = "g" if number else None
        made.call([1], [2])
        made.reward(float(number))
        attempts.append(made)
    exclusions, sequences = tables(tmp_path, attempts, "exclusions", "sequences", advantages=estimator)
    assert [(e["rollout_id"], e["reason"]) for e in exclusions] == [("r.0", "no_group")]
    assert len(sequences) == 2


def test_tokens_without_a_choice_are_no_empty_response(tmp_path: Path) -> None:
    made = attempt()
    made.call([1], [2], choice_lengths=[])
    made.call([1], [], choice_lengths=[0])
    made.reward(1.0)
    (exclusions,) = tables(tmp_path, [made], "exclusions", advantages="reinforce")
    assert [e["reason"] for e in exclusions] == ["no_token_ids", "empty_response"]


def test_a_rule_on_spans_of_no_kind_there_is_names_those_there_are() -> None:
    with pytest.raises(ValidationError, match=r"'llm', 'tool', 'agent'.*'other'"):
        AirRule(name="slip", value=-1.0, op="tol")
    assert AirRule(name="right", value=-1.0, op="tool").op == "tool"


def test_an_adapter_has_the_vocabulary_of_its_base_model(tmp_path: Path) -> None:
    model = tmp_path / "base"
    fetched = tmp_path / "models" / "owner--fetched"
    for folder in (model, fetched):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"text_config": {"vocab_size": 100}}')
    made = attempt()
    made.call([1], [99])
    made.call([1], [100])
    made.reward(1.0)
    for name in (str(model), "owner/fetched"):
        policy = PolicySettings(model=name, lora=LoraSettings(), advantages="reinforce")
        home = tmp_path / policy.model.replace("/", "_")
        (exclusions,) = tables(home, [made], "exclusions", policies=[policy], models=tmp_path / "models")
        assert [e["reason"] for e in exclusions] == ["bad_token_ids"]


@pytest.mark.parametrize("spans_a_bucket", [600_000, 1])
def test_ctrl_c_in_a_query_is_a_keyboard_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spans_a_bucket: int
) -> None:
    def interrupted(*_: Any) -> None:
        raise RuntimeError("Query interrupted")  # what DuckDB makes of a signal that comes while it runs

    monkeypatch.setattr(derive, "make_advantages", interrupted)
    made = [attempt(number) for number in range(2)]
    for one in made:
        one.reward(1.0)
    with pytest.raises(KeyboardInterrupt):
        derived(tmp_path, [row for one in made for row in one.rows], spans_a_bucket=spans_a_bucket)


def test_records_under_one_id_that_sampled_other_tokens_or_at_other_times_are_other_calls(tmp_path: Path) -> None:
    kinds: list[tuple[list[int], tuple[float, float], bool]] = [
        ([2], (0.2, 0.3), True),  # the same call, recorded twice
        ([3], (0.2, 0.3), False),
        ([2], (0.5, 0.6), False),
    ]
    attempts = []
    for number, (ids, at, _) in enumerate(kinds):
        made = attempt(number)
        solver = made.agent("solver", (0.1, 0.9))
        made.call([1], [2], (0.2, 0.3), solver, response_id="mock")
        made.call([1], ids, at, solver, response_id="mock")
        made.reward(1.0)
        attempts.append(made)
    (calls,) = tables(tmp_path, attempts, "policy_calls", advantages="reinforce")
    found = [sum(c["rollout_id"] == f"r.{number}" for c in calls) for number in range(len(kinds))]
    assert found == [1 if twins else 2 for *_, twins in kinds]


@pytest.mark.parametrize("assign", [{"assign": "nearest"}, {"assign": "discounted", "gamma": 0.5}])
def test_a_reward_does_not_pass_over_a_call_that_may_be_its_agents(tmp_path: Path, assign: dict[str, Any]) -> None:
    def made(at: tuple[float, float]) -> Attempt:
        one = attempt()
        agents = {name: one.agent(name, (0.1, 0.9)) for name in ("solver", "critic")}
        one.call([1], [2], (0.2, 0.25), agents["solver"])
        one.call([3], [4], (0.2, 0.25), agents["critic"])
        one.call([5], [6], at)  # nobody's, in a trace of its own
        emit(one, 1.0, 0.7, agents["solver"])
        return one

    def reasons(one: Attempt, name: str, **settings: Any) -> dict[str | None, str | None]:
        exclusions, calls = tables(
            tmp_path / name, [one], "exclusions", "policy_calls", advantages="reinforce", **assign, **settings
        )
        why = {e["call_id"]: e["reason"] for e in exclusions}
        return {c["agent"]: why.get(c["call_id"]) for c in calls}

    between = {"solver": "ambiguous_reward", "critic": None, None: "ambiguous_agent"}
    assert reasons(made((0.4, 0.5)), "between") == between
    assert reasons(made((0.8, 0.85)), "after") == between | {"solver": None}
    assert reasons(made((0.12, 0.18)), "before") == between | {"solver": None}
    assert reasons(made((0.4, 0.5)), "train", ambiguous="train") == dict.fromkeys(between)
