"""Which rewards count, and what rules give."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lightning_core.config import AirRule, SettingsError
from lightning_core.epoch.patterns import check_patterns
from lightning_core.lake import schema, sql
from lightning_core.loading import code_digest
from tests import lake_maker
from tests.lake_maker import Attempt, derived, table

Rows = list[dict[str, Any]]


def attempt(number: int = 0, outcome: str = "ok", **columns: Any) -> Attempt:
    made = Attempt(f"r.{number}", f"a{number}")
    made.root(outcome, **columns)
    return made


def emit(made: Attempt, value: float | None, at: float, agent: str | None = None, name: str = "reward") -> str:
    """A reward as an agent emits it, under its span."""
    return made.span("reward", (at, at), agent, op="reward", reward=value, reward_name=name, reward_source="agent")


def tool(made: Attempt, status: str, parent: str, at: float = 0.35, **columns: Any) -> str:
    return made.span("search", (at, at + 0.01), parent, op="tool", tool_name="search", status=status, **columns)


def tables(home: Path, attempts: list[Attempt], *names: str, **changes: Any) -> list[Rows]:
    lake, epoch = derived(home, [row for a in attempts for row in a.rows], **changes)
    return [table(lake, epoch, name) for name in names]


def returns(home: Path, attempts: list[Attempt], **changes: Any) -> list[tuple[str, str, float]]:
    """(rollout, agent, return) of every call, in order."""
    calls, credited = tables(home, attempts, "policy_calls", "call_returns", **changes)
    found = {row["call_id"]: row["return"] for row in credited}
    return [(c["rollout_id"], c["agent"], found[c["call_id"]]) for c in calls if c["call_id"] in found]


def two_agents(number: int = 0) -> tuple[Attempt, str, str]:
    """Two agents at work at the same time, two calls each: solver at 0.2 and 0.4, critic at 0.3 and 0.5."""
    made = attempt(number)
    solver, critic = made.agent("solver"), made.agent("critic")
    for parent, start in ((solver, 0.2), (critic, 0.3), (solver, 0.4), (critic, 0.5)):
        made.call([1, int(start * 10)], [2], (start, start + 0.05), parent)
    return made, solver, critic


def test_weights_sum_the_last_reward_of_each_name(tmp_path: Path) -> None:
    made = attempt()
    made.call([1], [2])
    emit(made, 0.5, 0.5, name="right")
    emit(made, 1.0, 0.6, name="right")
    emit(made, 0.4, 0.5, name="short")
    emit(made, 9.0, 0.9, name="unnamed")
    other = attempt(1)
    other.call([1], [2])
    emit(other, 0.5, 0.5, name="short")
    rewards, given, unmatched = tables(
        tmp_path, [made, other], "rollout_rewards", "rewards_given", "unmatched_settings",
        weights={"right": 1.0, "short": -0.5, "typo": 2.0},
    )  # fmt: skip
    assert [(r["reward"], r["source"]) for r in rewards] == [(pytest.approx(0.8), "right, short"), (-0.25, "short")]
    assert {(g["name"], g["value"]): (g["counts"], g["left_out"]) for g in given if g["rollout_id"] == "r.0"} == {
        ("right", 0.5): (False, None),
        ("right", 1.0): (True, None),
        ("short", 0.4): (True, None),
        ("unnamed", 9.0): (False, "no_weight"),
    }
    assert [(u["setting"], u["given"]) for u in unmatched] == [("reward.weights", "typo")]


def test_rewards_that_cannot_be_used_are_named_by_rollout_and_span(tmp_path: Path) -> None:
    made, only_bad, stray = attempt(), attempt(1), Attempt("r.unknown", "a9")
    for one in (made, only_bad):
        one.call([1], [2])
    emit(made, 0.5, 0.5)
    nan = emit(made, math.nan, 0.6)
    infinite = emit(only_bad, math.inf, 0.5)
    nothing = emit(only_bad, None, 0.6)
    lost = stray.reward(1.0)
    stray.reward(0.5, 0.96, sender="secret")  # of another epoch of the run, graded again after this one
    elsewhere = Attempt("r.opened", "1")  # by an agent that lives elsewhere, which no epoch has learned from
    elsewhere.span("rollout.opened", (0, 0), op="rollout.opened", sender="gateway")
    elsewhere.reward(1.0, reward_source="agent")
    bad, rewards, exclusions = tables(
        tmp_path,
        [made, only_bad, stray, elsewhere],
        "bad_rewards",
        "rollout_rewards",
        "exclusions",
        advantages="reinforce",
    )
    assert [(b["rollout_id"], b["span_id"], b["reason"]) for b in bad] == [
        ("r.0", nan, "not_finite"),
        ("r.1", infinite, "not_finite"),
        ("r.1", nothing, "no_number"),
        ("r.unknown", lost, "unknown_rollout"),
    ]
    assert [(r["reward"], r["left_out"]) for r in rewards] == [(0.5, None), (None, "no_reward")]
    assert [(e["rollout_id"], e["reason"]) for e in exclusions] == [("r.1", "no_reward")]


FAILING_TOOL = {"name": "failing-tool", "value": -0.1, "op": "tool", "status": "error"}


def with_tools(number: int, *statuses: str, reward: float | None = None, outcome: str = "ok") -> Attempt:
    made = attempt(number, outcome)
    agent = made.agent("solver")
    made.call([1, 2], [3], parent=agent)
    for place, status in enumerate(statuses):
        tool(made, status, agent, 0.35 + place / 50)
    if reward is not None:
        made.reward(reward)
    return made


def test_a_failing_tool_call_costs_a_tenth_without_a_line_of_python(tmp_path: Path) -> None:
    """One rule in the settings, no grader, an agent that knows no rewards."""
    attempts = [with_tools(0, "ok"), with_tools(1, "error", "ok"), with_tools(2, "error", "error")]
    rewards, sequences = tables(tmp_path, attempts, "rollout_rewards", "sequences", air=[FAILING_TOOL])
    assert [(r["reward"], r["source"]) for r in rewards] == [(0, "air"), (-0.1, "air"), (-0.2, "air")]
    assert [s["advantage"] for s in sequences] == pytest.approx([0.999, 0, -0.999], abs=1e-3)


def test_what_rules_give_is_added_to_the_reward_also_of_a_failed_attempt(tmp_path: Path) -> None:
    attempts = [
        with_tools(0, "error", reward=1.0),
        with_tools(1, "error", reward=1.0, outcome="timeout"),
        with_tools(2, "ok", reward=0.5),
    ]
    (rewards,) = tables(tmp_path, attempts, "rollout_rewards", air=[FAILING_TOOL], failure_reward=-1.0)
    assert [(r["reward"], r["air"], r["success"]) for r in rewards] == [
        (0.9, -0.1, True),
        (-1.1, -0.1, False),
        (0.5, 0, False),
    ]


def test_rules_are_no_reward_where_somebody_was_to_give_one(tmp_path: Path) -> None:
    """A grader that failed, a reward that is no number: what rules give is not all there should have been."""
    bad = with_tools(0, "error")
    emit(bad, math.nan, 0.8)
    (rewards,) = tables(tmp_path, [bad], "rollout_rewards", air=[FAILING_TOOL])
    assert [r["left_out"] for r in rewards] == ["no_reward"]
    (tmp_path / "grader.sql").write_text("SELECT 1")
    grader = str(tmp_path / "grader.sql")
    (rewards,) = tables(tmp_path / "2", [with_tools(0, "error")], "rollout_rewards", air=[FAILING_TOOL], grader=grader)
    assert [r["left_out"] for r in rewards] == ["no_reward"]


def test_every_condition_of_a_rule_has_to_hold(tmp_path: Path) -> None:
    made = attempt()
    agent = made.agent("solver")
    call = made.call([1], [2], parent=agent, response_id="same", finish_reasons='["length"]')
    made.span("ChatCompletion", (0.2, 0.3), agent, op="llm", response_id="same", finish_reasons='["length"]')
    slow = tool(made, "ok", agent, 0.3, tool_result="Error: no such file", attributes=[("retries", "12")])
    failed = tool(made, "error", agent, 0.4, tool_result="boom", status_message="disk full")
    rules = [
        {"name": "says-error", "value": -1, "pattern": "(?i)^error"},
        {"name": "retried", "value": -2, "attribute": "retries", "pattern": "^[0-9]{2}$"},
        {"name": "has-retries", "value": -3, "attribute": "retries"},
        {"name": "column", "value": -4, "attribute": "status_message", "pattern": "disk"},
        {"name": "alias", "value": -5, "attribute": "gen_ai.tool.name", "pattern": "sea", "status": "error"},
        {"name": "by-tool", "value": -6, "tool": "^search$", "status": "ok"},
        {"name": "cut-off", "value": -7, "op": "llm", "attribute": "finish_reasons", "pattern": "length"},
        {"name": "never", "value": -8, "tool": "^earch"},
        {"name": "no-attribute", "value": -9, "attribute": "retry"},
    ]
    given, unmatched = tables(tmp_path, [made], "rewards_given", "unmatched_settings", air=rules)
    assert {(g["name"], g["span_id"]) for g in given} == {
        ("says-error", slow),
        ("retried", slow),
        ("has-retries", slow),
        ("column", failed),
        ("alias", failed),
        ("by-tool", slow),
        ("cut-off", call),
    }
    assert [(u["setting"], u["given"]) for u in unmatched] == [("reward.air", "never"), ("reward.air", "no-attribute")]


def test_a_rule_reads_any_attribute_and_any_column(tmp_path: Path) -> None:
    made = attempt()
    made.call([1], [2], parent=made.agent("solver"), output_tokens=512, conversation_id="thread-7")
    made.rows[-1]["attributes"] = [("app.retried", "true"), ("lc.node", "x/y")]
    rules = [
        {"name": "long", "value": -1, "attribute": "gen_ai.usage.output_tokens", "pattern": "^[0-9]{3,}$"},
        {"name": "column", "value": -2, "attribute": "output_tokens"},
        {"name": "session", "value": -3, "attribute": "session.id", "pattern": "7$"},
        {"name": "own", "value": -4, "attribute": "app.retried", "pattern": "^true$"},
        {"name": "other", "value": -5, "attribute": "lc.node", "pattern": "^x/"},
        {"name": "ids", "value": -6, "attribute": "prompt_ids"},
    ]
    given, unmatched = tables(tmp_path, [made], "rewards_given", "unmatched_settings", air=rules)
    assert {g["name"] for g in given} == {"long", "column", "session", "own", "other"}
    assert [u["given"] for u in unmatched] == ["ids"]


def test_rules_know_every_column_that_an_attribute_is_read_into() -> None:
    scalars = {c.name for c in schema.SPANS if c.type in ("VARCHAR", "BIGINT", "DOUBLE")}
    with duckdb.connect() as con:
        read = {
            row[0] for row in con.sql(f"SELECT column_name FROM ({sql.text('ingest/attribute_aliases')})").fetchall()
        }
    known = set(re.findall(r"WHEN '(\w+)' THEN spans", sql.text("triplets/air_matches")))
    assert scalars & read <= known <= scalars


def test_a_tool_call_that_two_instrumentations_saw_counts_once(tmp_path: Path) -> None:
    """As AutoGen under OpenInference: the outer span knows no id and says ok, the inner one has the id and failed."""
    made = attempt()
    agent = made.agent("solver")
    made.call([1], [2], parent=agent)
    outer = tool(made, "ok", agent, 0.40)
    tool(made, "error", outer, 0.405, tool_call_id="call_1")
    beside = tool(made, "error", agent, 0.50, tool_call_id="call_2")
    tool(made, "unset", agent, 0.505, tool_call_id="call_2")
    between = made.span("http", (0.60, 0.61), tool(made, "unset", agent, 0.60))
    tool(made, "error", between, 0.605)
    again = tool(made, "error", agent, 0.80, tool_call_id="call_2")  # the same id, long after: another call
    other = tool(made, "ok", agent, 0.85, tool_call_id="call_3")
    inner = tool(made, "error", other, 0.855, tool_call_id="call_4")  # a tool that calls a tool
    rules = [FAILING_TOOL, {"name": "fine", "value": 1, "op": "tool", "status": "ok"}]
    (given,) = tables(tmp_path, [made], "rewards_given", air=rules)
    assert [g["span_id"] for g in given if g["name"] == "fine"] == [other]
    failed = [g["span_id"] for g in given if g["name"] == "failing-tool"]
    assert len(failed) == 5 and {outer, beside, again, inner} <= set(failed)


def test_a_rule_is_bounded_by_its_cap_or_given_once(tmp_path: Path) -> None:
    attempts = [with_tools(0, *["error"] * 4)]
    rules = [
        FAILING_TOOL | {"name": "capped", "value": -0.25, "cap": 0.6},
        FAILING_TOOL | {"name": "once", "per": "rollout"},
    ]
    (given,) = tables(tmp_path, attempts, "rewards_given", air=rules)
    assert [g["value"] for g in given if g["name"] == "capped"] == pytest.approx([-0.25, -0.25, -0.1])
    assert [g["value"] for g in given if g["name"] == "once"] == [-0.1]


def test_a_rule_before_the_limit_is_given_by_degrees(tmp_path: Path) -> None:
    made = attempt()
    limits = [('{"max_tokens": 10}', None), (None, 10), ('{"max_completion_tokens": 10}', 99)]
    for at, (tokens, (used, asked)) in enumerate(zip((5, 6, 8, 10), [*limits, limits[0]], strict=True)):
        span = (0.1 * at + 0.1, 0.1 * at + 0.15)
        made.call([at], [1] * tokens, span, sampling=used, request_max_tokens=asked)
    tool(made, "ok", made.agent("solver"))
    rule: dict[str, Any] = {"name": "long", "value": -1.0, "before_limit": 5}
    given, rewards = tables(tmp_path / "1", [made], "rewards_given", "rollout_rewards", air=[rule])
    assert [g["value"] for g in given] == pytest.approx([-0.2, -0.6, -1.0])
    assert rewards[0]["air"] == pytest.approx(-1.8)
    (given,) = tables(tmp_path / "2", [made], "rewards_given", air=[rule | {"cap": 1.0}])
    assert [g["value"] for g in given] == pytest.approx([-0.2, -0.6, -0.2])
    with pytest.raises(ValueError, match="only LLM calls have"):
        AirRule(**rule, op="tool")


def test_the_rules_that_are_shipped(tmp_path: Path) -> None:
    made = with_tools(0, *["error"] * 9, reward=1.0)
    made.call([1], [5], (0.6, 0.7), finish_reasons='["length"]')
    (rewards,) = tables(tmp_path, [made], "rollout_rewards", air="default")
    assert rewards[0]["air"] == pytest.approx(-0.5 - 0.05)


@pytest.mark.parametrize("key", ["tool", "pattern"])
def test_a_rules_pattern_that_re2_refuses_names_the_rule(tmp_path: Path, key: str) -> None:
    rule = AirRule(name="x", value=1, **{key: "(?=a)"})
    with pytest.raises(SettingsError, match=rf"reward\.air\.0\.{key}: '\(\?=a\)' is no pattern RE2 can take"):
        check_patterns(lake_maker.settings(tmp_path, air=[rule]))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"agent_rules": [{"key": "k", "pattern": "("}]}, r"agent_rules\.0\.pattern"),
        ({"agent_rules": [{"key": "k", "when": "(?<!a)b"}]}, r"agent_rules\.0\.when"),
        ({"lake": {"redact": [{"pattern": r"(a)\1"}]}}, r"lake\.redact\.0\.pattern"),
        ({"agent_exclude": "["}, r"policies\.0\.agent_exclude"),
        ({"reward_match": "*"}, r"reward\.reward_match"),
        ({"prompts": {"writer": {"file": "writer.md", "agent_match": "(?=a)"}}}, r"prompts\.writer\.agent_match"),
    ],
)
def test_every_pattern_of_the_settings_is_checked(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        check_patterns(lake_maker.settings(tmp_path, **changes))


def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belong together"):
        lake_maker.settings(tmp_path, assign="discounted")
    with pytest.raises(ValueError, match="belong together"):
        lake_maker.settings(tmp_path, gamma=0.9)
    with pytest.raises(ValueError, match="no condition"):
        lake_maker.settings(tmp_path, air=[{"name": "all", "value": 1}])


def test_a_graders_reward_is_the_last_whatever_the_clocks_say(tmp_path: Path) -> None:
    (tmp_path / "grader.sql").write_text("SELECT 1")
    grader = str(tmp_path / "grader.sql")
    made = attempt()
    made.call([1], [2])
    emit(made, 0.25, 0.6)
    made.reward(1.0, 0.5, attributes=[("lightning.reward.grader", code_digest(grader))])
    (rewards,) = tables(tmp_path, [made], "rollout_rewards", grader=grader)
    assert [(r["reward"], r["source"]) for r in rewards] == [(1.0, "reward")]
