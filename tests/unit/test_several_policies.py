"""Several policies in one epoch: whose agents, whose rewards, whose turn. The same rollouts feed all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lightning_core.config import (
    GatewaySettings,
    LoraSettings,
    PolicySettings,
    Settings,
    SettingsError,
    UpstreamSettings,
)
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.patterns import require_apart, settle
from lightning_core.lake import catalog
from lightning_core.lake.explain import explain
from lightning_core.lake.explain_view import view
from lightning_core.lake.manifest import EpochManifest, Stage
from lightning_core.settings_file import load_settings
from tests import lake_maker
from tests.examples import of_many
from tests.lake_maker import Attempt, derived, table
from tests.lake_maker import settings as settings_of
from tests.unit.test_rewards import emit

pytestmark = pytest.mark.slow  # many lakes

LORA = LoraSettings()


def policy(name: str, **changes: Any) -> PolicySettings:
    return PolicySettings(name=name, lora=LORA, **changes)


def rollout(number: int, agents: dict[str, str], rewards: dict[str, float], **columns: Any) -> Attempt:
    """A rollout of one group in which each agent (name → the model it asks for) makes one call."""
    made = Attempt(f"r.{number}", f"a{number}")
    made.root(**columns)
    for place, (agent, model) in enumerate(agents.items()):
        start = 0.1 + 0.1 * place
        parent = made.agent(agent, (start, start + 0.09))
        made.call([1, place], [5 + number], (start + 0.01, start + 0.05), parent, policy=model)
    for name, value in rewards.items():
        emit(made, value, 0.9, name=name)
    return made


def rows_of(attempts: list[Attempt]) -> list[dict[str, Any]]:
    return [row for attempt in attempts for row in attempt.rows]


PAIR = {"planner": "planner", "executor": "executor"}


def test_one_epoch_feeds_every_policy_its_own_calls_with_its_own_estimator(tmp_path: Path) -> None:
    attempts = [rollout(n, PAIR, {"reward": float(n == 0)}) for n in range(3)]
    lake, epoch = derived(
        tmp_path, rows_of(attempts), policies=[policy("planner"), policy("executor", advantages="rloo")]
    )
    advantages = {(a["policy"], a["rollout_id"]): a["advantage"] for a in table(lake, epoch, "advantages")}
    assert advantages["planner", "r.0"] == pytest.approx((2 / 3) / (3**-0.5 + 1e-4))
    assert advantages["executor", "r.0"] == pytest.approx(1.0)  # against the mean of the others
    assert sorted((s["policy"], s["rollout_id"]) for s in table(lake, epoch, "sequences")) == sorted(advantages)


def test_a_cohort_of_agents_shares_one_policy_and_is_compared_by_rollout(tmp_path: Path) -> None:
    crew = {"lead": "lead", "worker-1": "worker", "worker-2": "worker", "intern": "worker"}
    attempts = [rollout(n, crew, {"reward": float(n)}) for n in range(2)]
    lake, epoch = derived(
        tmp_path, rows_of(attempts), policies=[policy("lead"), policy("worker", agent_match="^worker-")]
    )
    calls = table(lake, epoch, "policy_calls")
    assert {(c["agent"], c["policy"], c["left_out"]) for c in calls} == {
        ("lead", "lead", None),
        ("worker-1", "worker", None),
        ("worker-2", "worker", None),
        ("intern", "worker", "agent_not_matched"),
    }
    ones = [a for a in table(lake, epoch, "advantages") if a["policy"] == "worker"]
    assert [(a["rollout_id"], a["group_rollouts"]) for a in ones] == [("r.0", 2), ("r.1", 2)]


def test_a_critic_gives_the_reward_and_is_never_trained(tmp_path: Path) -> None:
    attempts = []
    for n in range(2):
        made = Attempt(f"r.{n}", f"a{n}")
        made.root()
        writer, critic = made.agent("writer", (0.1, 0.4)), made.agent("critic", (0.5, 0.9))
        made.call([1], [5 + n], (0.2, 0.3), writer, policy="writer")
        made.call([2], [6], (0.6, 0.7), critic, policy=None, model="critic", untrainable="other_model")
        emit(made, float(n), 0.8, critic)
        emit(made, 9.0, 0.35, writer)
        attempts.append(made)
    lake, epoch = derived(
        tmp_path, rows_of(attempts), policies=[policy("writer")], frozen=["critic"], reward_match="^critic$"
    )
    assert [r["reward"] for r in table(lake, epoch, "rollout_rewards")] == [0.0, 1.0]
    assert {(c["agent"], c["left_out"]) for c in table(lake, epoch, "policy_calls")} == {
        ("writer", None),
        ("critic", "other_policy"),
    }
    assert {s["policy"] for s in table(lake, epoch, "sequences")} == {"writer"}


@pytest.mark.parametrize(("assign", "gamma"), [("final", None), ("nearest", None), ("discounted", 0.5)])
def test_a_policy_with_rewards_of_its_own_is_trained_on_these_alone(
    tmp_path: Path, assign: str, gamma: float | None
) -> None:
    attempts = [rollout(n, PAIR, {"reward": n / 10, "plan": 1.0 - n, "style": 0.5}) for n in range(2)]
    lake, epoch = derived(
        tmp_path,
        rows_of(attempts),
        policies=[policy("planner", rewards={"plan": 2.0, "style": 1.0, "typo": 1.0}), policy("executor")],
        assign=assign,
        gamma=gamma,
    )
    returns = {(r["policy"], r["rollout_id"]): (r["reward"], r["return"]) for r in table(lake, epoch, "call_returns")}
    assert returns == {
        ("planner", "r.0"): (2.5, 2.5),
        ("planner", "r.1"): (0.5, 0.5),
        ("executor", "r.0"): (0.0, 0.0),
        ("executor", "r.1"): (0.1, 0.1),
    }
    assert [r["reward"] for r in table(lake, epoch, "rollout_rewards")] == [0.0, 0.1], "the run's own stays what it is"
    sequences = {(s["policy"], s["rollout_id"]): s["reward"] for s in table(lake, epoch, "sequences")}
    assert sequences == {of: reward for of, (reward, _) in returns.items()}
    unmatched = [(u["setting"], u["given"]) for u in table(lake, epoch, "unmatched_settings")]
    assert unmatched == [("policies.planner.rewards", "typo")]


def test_own_rewards_take_the_last_of_a_name_and_failures_and_rules_are_everybodys(tmp_path: Path) -> None:
    twice = rollout(0, PAIR, {"reward": 1.0, "plan": 0.2})
    emit(twice, 0.7, 0.95, name="plan")
    without = rollout(1, PAIR, {"reward": 1.0})
    failed = rollout(2, PAIR, {"plan": 1.0}, outcome="error")
    lake, epoch = derived(
        tmp_path,
        rows_of([twice, without, failed]),
        policies=[policy("planner", rewards={"plan": 1.0}, advantages="reinforce"), policy("executor")],
        failure_reward=-1.0,
    )
    found = {r["rollout_id"]: r["reward"] for r in table(lake, epoch, "call_returns") if r["policy"] == "planner"}
    assert found == {"r.0": 0.7, "r.2": -1.0}
    reasons = [(e["policy"], e["rollout_id"], e["reason"]) for e in table(lake, epoch, "exclusions")]
    assert ("planner", "r.1", "no_reward") in reasons


def test_an_own_reward_that_may_be_for_an_ambiguous_call_trains_no_other(tmp_path: Path) -> None:
    attempts = []
    for n in range(2):
        made = Attempt(f"r.{n}", f"a{n}")
        made.root()
        writer = made.agent("writer", (0.1, 0.8))
        made.agent("critic", (0.3, 0.8))
        made.call([1], [5 + n], (0.12, 0.2), writer)
        made.call([2], [6 + n], (0.4, 0.5))  # the writer's or the critic's
        emit(made, float(n), 0.7, writer, name="plan")
        attempts.append(made)
    weights = {"reward": 1.0}  # by which the run has no use for `plan`
    policies = [policy("policy", rewards={"plan": 1.0})]
    lake, epoch = derived(tmp_path, rows_of(attempts), policies=policies, weights=weights, assign="nearest")
    assert {s["left_out"] for s in table(lake, epoch, "reward_steps")} == {"ambiguous_call"}
    assert {e["reason"] for e in table(lake, epoch, "exclusions")} == {"ambiguous_reward", "ambiguous_agent"}


def test_explain_tells_what_a_reward_is_to_a_policy_with_rewards_of_its_own(tmp_path: Path) -> None:
    attempts = [rollout(n, PAIR, {"plan": 1.0 - n}) for n in range(2)]
    policies = [policy("planner", rewards={"plan": 2.0}), policy("executor")]
    lake, _ = derived(tmp_path, rows_of(attempts), policies=policies, weights={"reward": 1.0})
    lake.rebuild_catalog()
    found = explain(lake.root, "r.0")
    assert [(r["left_out"], r["policies"]) for r in found["rewards"]] == [
        ("no_weight", [{"policy": "planner", "weight": 2.0, "counts": True}])
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view(found))
    shown = console.export_text()
    assert "left out but for policies with rewards of their own: no_reward" in shown
    assert "no_weight; to planner: yes, weight 2" in shown


@of_many(2)
@given(
    rewards=st.lists(
        st.lists(st.tuples(st.sampled_from(["plan", "style", "reward"]), st.integers(-4, 4)), max_size=6),
        min_size=1,
        max_size=8,
    ),
    plan=st.integers(-2, 2),
    style=st.integers(-2, 2),
)
def test_own_rewards_are_what_the_run_would_be_rewarded_with_by_the_same_weights(
    tmp_path_factory: pytest.TempPathFactory, rewards: list[list[tuple[str, int]]], plan: int, style: int
) -> None:
    weights = {"plan": float(plan), "style": float(style)}
    made = [rollout(number, PAIR, {}) for number in range(len(rewards))]
    for attempt, values in zip(made, rewards, strict=True):
        for place, (name, value) in enumerate(values):
            emit(attempt, value / 4, 0.5 + 0.01 * place, name=name)
    policies = [policy("planner", rewards=weights, advantages="reinforce"), policy("executor", advantages="reinforce")]
    home = tmp_path_factory.mktemp("own")

    def returned(to: str, **settings: Any) -> list[tuple[str, float | None]]:
        found = table(*derived(home / to, rows_of(made), **settings), "call_returns")
        return sorted((r["rollout_id"], r["reward"]) for r in found if r["policy"] == to)

    own, runs = returned("planner", policies=policies), returned("executor", policies=policies[1:], weights=weights)
    assert own == runs


def test_a_policy_is_trained_in_its_epochs_alone(tmp_path: Path) -> None:
    attempts = [rollout(n, PAIR, {"reward": float(n)}) for n in range(2)]
    policies = [policy("planner", train_every=2), policy("executor", train_every=2, train_offset=1)]
    lake, epoch = derived(tmp_path, rows_of(attempts), policies=policies)
    assert {(c["policy"], c["left_out"]) for c in table(lake, epoch, "policy_calls")} == {
        ("planner", None),
        ("executor", "not_scheduled"),
    }
    assert {s["policy"] for s in table(lake, epoch, "sequences")} == {"planner"}
    assert [[p.trains_in(n) for n in range(4)] for p in policies] == [
        [True, False, True, False],
        [False, True, False, True],
    ]
    assert not any(policy("executor", train_every=0).trains_in(n) for n in range(4))


def test_patterns_that_overlap_name_the_agent_and_both_patterns(tmp_path: Path) -> None:
    crew = {"planner-west": "planner", "worker": "worker"}
    made = [rollout(n, crew, {"reward": float(n)}) for n in range(2)]

    def overlaps(home: str, **changes: dict[str, Any]) -> Epoch:
        settings = {"planner": {"agent_match": "plan"}, "worker": {"agent_match": "west|worker"}} | changes
        policies = [policy(n, **s) for n, s in settings.items()]
        _, epoch = derived(tmp_path / home, rows_of(made), policies=policies)
        return Epoch(settings_of(tmp_path / home, policies=policies), epoch)

    with pytest.raises(
        SettingsError, match=r"agent 'planner-west' by policies planner \('plan'\) and worker \('west\|worker'\)"
    ):
        require_apart(overlaps("a"))
    require_apart(overlaps("b", worker={"agent_match": "west|worker", "agent_exclude": "plan"}))
    require_apart(overlaps("c", worker={}))  # no pattern, no agents selected: `model` alone says what is its


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": [PolicySettings(name="full")], "frozen": ["critic"]}, "'full' trains full weights.*'critic'.*`lora:`"),
        ({"policies": [policy("a")], "frozen": ["a"]}, "`frozen` has 'a', which is also a policy"),
        ({"policies": [policy("a")], "frozen": ["b", "b"]}, "or there twice"),
    ],
)  # fmt: skip
def test_frozen_models_that_cannot_be_served_are_refused_with_the_remedy(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lake_maker.settings(tmp_path, **changes)


JUDGE = GatewaySettings(upstreams=[UpstreamSettings(name="api", base_url="http://x/v1", models=["gpt-judge"])])


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        (
            (["gpt-4o"], ["gpt-4o"]),
            r"`policies\.1\.aliases` has 'gpt-4o', which `policies\.0\.aliases` has too.*one of them",
        ),
        ((["*"], ["*"]), r"`policies\.1\.aliases` has '\*'"),
        ((["gpt-4o", "gpt-4o"], []), r"`policies\.0\.aliases` has 'gpt-4o'.*one of them"),
        ((["b"], []), r"`policies\.0\.aliases` has 'b', which is a policy.*remove it"),
        (([], ["a@v0001"]), r"`policies\.1\.aliases` has 'a@v0001', which is a version of a policy"),
        ((["critic"], []), "which is a frozen model"),
        (([], ["gpt-judge"]), "which is a model of an upstream"),
        (([" gpt-4o"], []), "string_pattern_mismatch"),
        ((["two\nlines"], []), "string_pattern_mismatch"),
    ],
)
def test_an_alias_that_does_not_say_whose_it_is_is_refused_with_place_and_remedy(
    tmp_path: Path, aliases: tuple[list[str], list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        policies = [policy(name, aliases=given) for name, given in zip("ab", aliases, strict=True)]
        lake_maker.settings(tmp_path, policies=policies, frozen=["critic"], gateway=JUDGE)


def test_aliases_are_free_text_and_lead_to_their_policies(tmp_path: Path) -> None:
    policies = [policy("a", aliases=["openai/gpt-4o", "gpt 4.1 (mini)"]), policy("b", aliases=["*", "a b@v0001"])]
    settings = lake_maker.settings(tmp_path, policies=policies, frozen=["critic"], gateway=JUDGE)
    assert settings.aliases == {"openai/gpt-4o": "a", "gpt 4.1 (mini)": "a", "*": "b", "a b@v0001": "b"}


def test_a_turn_that_never_comes_is_refused() -> None:
    with pytest.raises(ValueError, match="make it smaller"):
        policy("a", train_every=2, train_offset=2)


def test_every_policys_versions_returns_and_age_are_in_one_view(tmp_path: Path) -> None:
    attempts = [rollout(n, PAIR, {"reward": float(n), "plan": 2.0}) for n in range(2)]
    policies = [policy("planner", rewards={"plan": 1.0}), policy("executor", train_every=0)]
    lake, epoch = derived(
        tmp_path, rows_of(attempts), policies=policies, versions={"planner": "v0002", "executor": "v0000"}
    )
    for name, version, skipped in (("planner", "v0003", None), ("executor", "v0000", "not trained in epoch 0")):
        output = {"version": version, "metrics": {}} | ({"skipped": skipped} if skipped else {})
        epoch.stages[f"train {name}"] = Stage(key="k", output=output, seconds=1.0, finished_ns=0)
    lake.manifests.put_epoch(epoch)
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        found = con.execute(
            "SELECT policy, version, trained_version, skipped, calls, trainable_calls, mean_return, lag FROM policy_epochs"
        ).fetchall()
    assert found == [
        ("executor", "v0000", "v0000", "not trained in epoch 0", 2, 0, None, 0),
        ("planner", "v0002", "v0003", None, 2, 2, 2.0, 2),
    ]


def test_settings_of_several_policies_survive_json() -> None:
    made = lake_maker.settings(Path("home"), policies=[policy("a", rewards={"plan": 1.0}, train_every=2)], frozen=["b"])
    assert Settings.model_validate_json(made.model_dump_json()) == made


EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "several_agents"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_name_every_model_the_crew_asks_for(file: Path) -> None:
    found = load_settings(file)
    assert {p.name for p in found.policies} | set(found.frozen) == {"lead", "worker", "critic"}


def test_agents_found_in_the_last_epoch_are_those_trained_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES.parents[1])
    crew = {"lead": "lead", "worker-1": "worker", "worker-2": "worker", "critic": "critic"}
    attempts = [rollout(n, crew | ({"worker-3": "worker"} if n else {}), {"reward": float(n)}) for n in range(2)]
    discovered = load_settings(EXAMPLES / "discovered.yaml", {"run": "run", "home": str(tmp_path)})
    derived(tmp_path, rows_of(attempts), policies=[policy("worker", agent_match="^worker-")])
    following = EpochManifest(run="run", epoch=1, opened_offset=0)
    settle(Epoch(discovered, following))
    assert following.patterns["worker"].pattern == "^worker-1$|^worker-2$", "worker-3 made one call, these made two"
    first = EpochManifest(run="run", epoch=0, opened_offset=0)
    settle(Epoch(discovered, first))
    assert first.patterns["worker"].pattern == "^worker-", "nobody is known before the first"
