"""From returns to advantages: each estimator against its formula, done by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import PolicySettings, Settings, SettingsError
from lightning_core.epoch.derive_inputs import check_estimators, make_advantages, settings_read
from lightning_core.settings_file import load_settings
from tests import sql_rig
from tests.docs_blocks import ROOT, blocks
from tests.lake_maker import settings

EPSILON = 1e-4


def final(rewards: list[float], group: str = "g", policy: str = "policy", calls: int = 1) -> list[dict[str, Any]]:
    """call_returns of rollouts that made `calls` calls each, as `assign: final` gives them."""
    return [
        {
            "call_id": 1000 * sum(map(ord, group)) + 10 * number + call,
            "policy": policy,
            "group_id": group,
            "rollout_id": f"{group}.{number}",
            "attempt_id": "a",
            "agent": "",
            "step": 0,
            "reward": reward,
            "return": reward,
        }
        for number, reward in enumerate(rewards)
        for call in range(calls)
    ]


def steps(returns: list[list[float]], agent: str = "solver") -> list[dict[str, Any]]:
    """call_returns of rollouts of one group whose calls have returns of their own."""
    return [
        row | {"agent": agent, "step": step, "return": value, "call_id": 100 * number + step}
        for number, values in enumerate(returns)
        for row in [final([0.0] * len(returns))[number]]
        for step, value in enumerate(values, 1)
    ]


def advantages(home: Path, calls: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    con = sql_rig.connection(home, **changes)
    sql_rig.put(con, "call_returns", sql_rig.RETURNS, calls)
    make_advantages(con, settings(home, **changes).policies)
    return sql_rig.rows(con, "FROM advantages")


def values(home: Path, calls: list[dict[str, Any]], **changes: Any) -> list[float | None]:
    return [row["advantage"] for row in advantages(home, calls, **changes)]


REWARDS = [1.0, 0.0, 0.0, 0.5]
MEAN = 0.375
STD = math.sqrt(sum((r - MEAN) ** 2 for r in REWARDS) / 3)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("grpo", [(r - MEAN) / (STD + EPSILON) for r in REWARDS]),
        ("dr_grpo", [r - MEAN for r in REWARDS]),
        ("rloo", [r - (sum(REWARDS) - r) / 3 for r in REWARDS]),
        ("reinforce", REWARDS),
        ("reinforce_pp", [(r - MEAN) / (STD * math.sqrt(3 / 4) + EPSILON) for r in REWARDS]),
    ],
)
def test_each_estimator_is_its_formula(tmp_path: Path, estimator: str, expected: list[float]) -> None:
    assert values(tmp_path, final(REWARDS), advantages=estimator) == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce", "reinforce_pp"])
def test_a_rollout_counts_once_however_many_calls_it_made(tmp_path: Path, estimator: str) -> None:
    calls = final(REWARDS)
    longer = calls + [calls[0] | {"call_id": 900 + i} for i in range(7)]
    assert values(tmp_path, longer, advantages=estimator) == values(tmp_path, calls, advantages=estimator)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_groups_without_spread_or_of_one_rollout_are_left_out_by_estimators_that_compare(
    tmp_path: Path, estimator: str
) -> None:
    calls = final([0.3, 0.3, 0.3], "even") + final([0.7], "one")
    found = advantages(tmp_path, calls, advantages=estimator)
    assert [(r["group_id"], r["advantage"], r["left_out"]) for r in found] == [
        ("even", None, "no_spread"),
        ("even", None, "no_spread"),
        ("even", None, "no_spread"),
        ("one", None, "group_of_one"),
    ]


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce", "reinforce_pp"])
def test_groups_whose_returns_lie_closer_than_min_spread_are_left_out_whatever_the_estimator(
    tmp_path: Path, estimator: str
) -> None:
    calls = final([0.0, 0.1, 0.1], "wrong") + final([0.95, 1.0], "right") + final([0.1, 0.4], "at") + final(REWARDS)
    policy = PolicySettings(advantages=estimator, min_spread=0.3)
    found = advantages(tmp_path, calls, policies=[policy])
    left_out = {r["group_id"]: r["left_out"] for r in found}
    assert left_out == {"wrong": "little_spread", "right": "little_spread", "at": None, "g": None}
    assert all((r["advantage"] is None) == (r["left_out"] is not None) for r in found)


def test_a_spread_is_of_the_calls_that_are_compared(tmp_path: Path) -> None:
    """Step by step, where returns are the calls' own; a single rollout still is a group of one."""
    policies = [PolicySettings(advantages="grpo", min_spread=0.5)]
    found = advantages(tmp_path, steps([[0.0, 1.0, 1.0], [0.1, 0.0]]), policies=policies)
    assert {r["step"]: r["left_out"] for r in found} == {1: "little_spread", 2: None, 3: "group_of_one"}


@pytest.mark.parametrize("estimator", ["reinforce", "reinforce_pp"])
def test_other_estimators_leave_no_group_out(tmp_path: Path, estimator: str) -> None:
    calls = final([0.3, 0.3], "even") + final([0.7], "one")
    assert [row["left_out"] for row in advantages(tmp_path, calls, advantages=estimator)] == [None] * 3


def test_reinforce_pp_compares_across_groups_and_the_others_within(tmp_path: Path) -> None:
    calls = final([0.0, 1.0], "easy") + final([10.0, 11.0], "rich")
    spread = math.sqrt((5.5**2 + 4.5**2 + 4.5**2 + 5.5**2) / 4) + EPSILON
    expected = [-5.5 / spread, -4.5 / spread, 4.5 / spread, 5.5 / spread]
    assert values(tmp_path, calls, advantages="reinforce_pp") == pytest.approx(expected)
    assert values(tmp_path, calls, advantages="dr_grpo") == [-0.5, 0.5, -0.5, 0.5]


def test_policies_of_one_rollout_have_their_own_estimators(tmp_path: Path) -> None:
    lora = {"rank": 4}
    policies = [
        PolicySettings(name="a", lora=lora, advantages="rloo"),
        PolicySettings(name="b", lora=lora, advantages="reinforce"),
    ]
    calls = final([0.0, 1.0], policy="a") + final([0.0, 1.0], policy="b")
    assert values(tmp_path, calls, policies=policies) == [-1.0, 1.0, 0.0, 1.0]


def test_a_policy_is_compared_over_the_rollouts_in_which_it_acted(tmp_path: Path) -> None:
    calls = final([0.0, 1.0, 0.6])
    calls[1]["left_out"] = "ambiguous_reward"
    assert values(tmp_path, calls, advantages="dr_grpo") == pytest.approx([-0.3, 0.3])


def test_returns_of_calls_are_compared_at_the_same_step(tmp_path: Path) -> None:
    assert values(tmp_path, steps([[0.5, 1.0], [0.0, 0.0]]), advantages="dr_grpo") == [0.25, 0.5, -0.25, -0.5]


def test_a_rollout_that_ended_earlier_stands_with_its_last_return(tmp_path: Path) -> None:
    calls = steps([[1.0], [0.0, 0.5, 0.0]])
    found = advantages(tmp_path, calls, advantages="dr_grpo", assign="discounted", gamma=1.0)
    assert [(r["rollout_id"], r["step"], r["advantage"]) for r in found] == [
        ("g.0", 1, 0.5),
        ("g.1", 1, -0.5),
        ("g.1", 2, -0.25),
        ("g.1", 3, -0.5),
    ]


def test_discounting_alone_gives_no_advantage(tmp_path: Path) -> None:
    """Rollouts that did the same: that an early call is further from the reward is nobody's merit."""
    found = advantages(tmp_path, steps([[0.25, 0.5, 1.0], [0.25, 0.5, 1.0]]), advantages="grpo")
    assert {row["left_out"] for row in found} == {"no_spread"}


def test_agents_are_not_compared_with_one_another(tmp_path: Path) -> None:
    calls = steps([[1.0], [0.0]], "solver") + [
        row | {"call_id": row["call_id"] + 50} for row in steps([[7.0], [9.0]], "critic")
    ]
    found = {(r["agent"], r["rollout_id"]): r["advantage"] for r in advantages(tmp_path, calls, advantages="rloo")}
    assert found == {("solver", "g.0"): 1, ("solver", "g.1"): -1, ("critic", "g.0"): -2, ("critic", "g.1"): 2}


def own(tmp_path: Path, text: str) -> str:
    file = tmp_path / "own.sql"
    file.write_text(text)
    return str(file)


def test_a_users_estimator_is_a_file(tmp_path: Path) -> None:
    file = own(tmp_path, "SELECT *, return - 0.25 AS advantage FROM returns WHERE acted;\n")
    assert values(tmp_path, final([0.0, 1.0]), advantages=file) == [-0.25, 0.75]


def test_the_estimator_of_the_docs_works(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "credit.md") if block.language == "sql"]
    assert values(tmp_path, final([0.0, 1.0]), advantages=own(tmp_path, block.text)) == [-0.5, 0.5]


def test_a_users_estimator_is_found_beside_the_settings_and_its_text_is_in_the_stages_key(tmp_path: Path) -> None:
    file = own(tmp_path, "SELECT *, return AS advantage FROM returns WHERE acted")
    text = "agent: {callable: 'a:run'}\ntasks: {train: t.jsonl}\npolicies: [{advantages: own.sql}]\n"
    (tmp_path / "settings.yaml").write_text(text)
    loaded = load_settings(tmp_path / "settings.yaml")
    assert loaded.policies[0].advantages == file
    before = settings_read(loaded)
    own(tmp_path, "SELECT *, 2 * return AS advantage FROM returns WHERE acted")
    assert settings_read(loaded) != before


def test_what_an_estimator_leaves_out_or_gets_wrong_is_counted(tmp_path: Path) -> None:
    file = own(
        tmp_path,
        """
        SELECT
            *,
            CASE rollout_id WHEN 'g.0' THEN 1 WHEN 'g.1' THEN 'nan'::DOUBLE WHEN 'g.2' THEN 1e300 END AS advantage,
            CASE rollout_id WHEN 'g.3' THEN 'too_easy' END AS left_out
        FROM returns WHERE rollout_id <> 'g.5'
        """,
    )
    found = advantages(tmp_path, final([0.0] * 6), advantages=file)
    assert [(r["advantage"], r["left_out"]) for r in found] == [
        (1.0, None),
        (None, "advantage_not_finite"),
        (None, "advantage_not_finite"),
        (None, "too_easy"),
        (None, "no_advantage"),
        (None, "no_advantage"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "SELECT policy, rollout_id FROM returns",
            r"own\.sql: no column group_id, agent, step, attempt_id, advantage; it",
        ),
        ("SELECT nonsense", r"own\.sql: .*nonsense.*returns the columns policy, group_id"),
        ("SELECT *, 'high' AS advantage FROM returns", r"own\.sql: .*returns the columns"),
        (
            "SELECT *, 1.0 AS advantage FROM returns UNION ALL SELECT *, 2.0 FROM returns",
            r"own\.sql: two rows for policy",
        ),
    ],
)
def test_a_broken_estimator_names_its_file_and_what_it_must_return(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        advantages(tmp_path, final([0.0, 1.0]), advantages=own(tmp_path, text))


def test_an_estimator_is_tried_before_the_first_rollout(tmp_path: Path) -> None:
    def check(advantages: str) -> None:
        check_estimators(settings(tmp_path, advantages=advantages).policies)

    check("grpo")
    with pytest.raises(SettingsError, match=r"missing\.sql: cannot be read \(No such file"):
        check(str(tmp_path / "missing.sql"))
    with pytest.raises(SettingsError, match=r"own\.sql: no column"):
        check(own(tmp_path, "SELECT 1 AS advantage"))


def test_an_estimator_that_compares_needs_groups(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rollout\.group_size is 1, but `rloo` compares"):
        settings(tmp_path, advantages="rloo", rollout={"group_size": 1})
    one: Settings = settings(tmp_path, advantages="reinforce", rollout={"group_size": 1})
    assert one.rollout.group_size == 1
