"""The views of the catalog over small lakes: attempts, rollouts, calls; what they count, and what they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import catalog
from lightning_core.lake.derived_tables import COLUMNS
from lightning_core.lake.lake import Lake
from tests.lake_maker import SECOND, Attempt, derived, settings
from tests.view_rig import Rows, ask, put, sealed_at, simple, team, underived

pytestmark = pytest.mark.slow  # many lakes


def test_every_view_is_there_and_empty_before_the_first_epoch(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for view in {*catalog.VIEWS, *COLUMNS} - {"columns", "meanings"}:
        assert ask(lake, f"FROM {view}") == [], view


def test_the_declared_columns_of_derived_tables_are_those_that_are_derived(tmp_path: Path) -> None:
    lake, epoch = derived(tmp_path, simple(0).rows + simple(1).rows)
    others = {
        "finetune_rollouts",
        "training_rows",
        "token_scores",
    }  # test_finetune.py, test_training_rows.py, test_token_scores.py
    assert set(epoch.tables) == set(COLUMNS) - others
    with duckdb.connect() as con:
        for name, columns in COLUMNS.items():
            if name in others:
                continue
            made = con.execute("DESCRIBE FROM read_parquet(?)", [str(lake.path(epoch.tables[name]))]).fetchall()
            assert [row[:2] for row in made] == columns, name


def test_a_retry_without_a_scope_counts_once_and_is_not_mixed_with_others(tmp_path: Path) -> None:
    attempt = simple(0)
    attempt.span("chat", (0.3, 0.4), op="llm", model="gpt", rollout_id=None, attempt_id=None, span_id="ab" * 8)
    lone = attempt.rows[-1]
    lake, _ = derived(
        tmp_path, [*attempt.rows, lone | {"record_offset": 77}, lone | {"name": "other", "record_offset": 78}]
    )
    calls = ask(lake, "SELECT recorded_by, run, model FROM calls WHERE rollout_id IS NULL")
    assert calls == [{"recorded_by": "instrumentation", "run": None, "model": "gpt"}] * 2


def test_the_model_of_a_call_is_what_was_asked_for_not_the_name_it_is_served_under(tmp_path: Path) -> None:
    attempt = simple(0)
    attempt.call([1], [2], model="base", attributes={"gen_ai.request.model": "critic"})
    attempt.call([1], [2], model="gpt")  # both are the same: the decoder keeps one
    lake, _ = derived(tmp_path, attempt.rows)
    calls = ask(lake, "SELECT model, served_model FROM calls WHERE model IS NOT NULL ORDER BY ALL")
    assert calls == [{"model": "critic", "served_model": "base"}, {"model": "gpt", "served_model": "gpt"}]


def test_other_content_under_the_same_ids_is_another_span(tmp_path: Path) -> None:
    attempt = simple(0)
    for name in ("search", "read"):
        attempt.span(name, (0.4, 0.5), op="tool", tool_name=name, span_id="cd" * 8)
    lake, _ = derived(tmp_path, attempt.rows)
    assert sorted(r["tool_name"] for r in ask(lake, "FROM tool_calls")) == ["read", "search"]
    assert len(ask(lake, "FROM span_places WHERE span_id = 'cdcdcdcdcdcdcdcd'")) == 1


@pytest.mark.parametrize("ended", [True, False], ids=["derived", "not_derived"])
def test_calls_that_share_their_ids_are_two_and_only_the_twin_is_one(tmp_path: Path, ended: bool) -> None:
    attempt = Attempt(rollout="r.1", attempt="a")
    ids = {"trace_id": "ab" * 16, "span_id": "cd" * 8}
    attempt.call([1], [2], at=(0.1, 0.2), response_id="one", output_tokens=10)
    attempt.span("chat", (0.1, 0.2), op="llm", response_id="one", output_tokens=10, **ids)
    attempt.call([3], [4], at=(0.3, 0.4), response_id="three", output_tokens=7, **ids)
    if ended:
        attempt.root()
    else:
        attempt.span(
            "rollout.start", (0, 0), op="rollout.start", run="run", epoch=0, mode="train", group_id="g", task_id="g"
        )
    lake, _ = derived(tmp_path, attempt.rows)
    assert ask(lake, "SELECT calls, response_tokens FROM rollouts") == [{"calls": 2, "response_tokens": 17}]
    assert len(ask(lake, "FROM calls WHERE twin_of IS NULL")) == 2


def attempts_of_all_kinds() -> Rows:
    """Rollout r.1: broken, then counts, then superseded; r.2 never ended; r.3 ends at offset 500."""
    rows = simple(0).rows
    for name, outcome, start in (("b", "infrastructure", 200.0), ("c", "error", 210.0), ("d", "ok", 220.0)):
        attempt = Attempt(rollout="r.1", attempt=name, start=start)
        attempt.span(
            "rollout.start", (0, 0), op="rollout.start", run="run", epoch=0, mode="train", group_id="g", task_id="g"
        )
        attempt.root(outcome=outcome, error=f"{name} failed" if outcome != "ok" else None)
        rows += attempt.rows
    running = Attempt(rollout="r.2", attempt="e", start=230.0)
    running.span(
        "rollout.start", (0, 0), op="rollout.start", run="run", epoch=0, mode="train", group_id="g", task_id="g"
    )
    late = Attempt(rollout="r.3", attempt="f", start=240.0)
    late.span("rollout.start", (0, 0), op="rollout.start", run="run", epoch=0, mode="train", group_id="g", task_id="g")
    late.root(record_offset=500)
    return rows + running.rows + late.rows


STATES = {"a0": "counts", "b": "infrastructure", "c": "counts", "d": "superseded", "e": "unfinished", "f": "late"}


def test_attempts_say_what_became_of_every_execution(tmp_path: Path) -> None:
    rows = attempts_of_all_kinds()
    lake, epoch = derived(tmp_path, rows)
    epoch.sealed_offset = 500
    derive(Epoch(settings(tmp_path), epoch), "sealed")
    put(lake, epoch)
    for live in (False, True):
        if live:
            underived(lake, epoch)
        found = ask(lake, "FROM attempts")
        assert {row["attempt_id"]: row["state"] for row in found} == STATES
        assert {row["attempt_id"]: row["seconds"] for row in found} == dict.fromkeys(STATES, 1.0) | {"e": None}
        (counting,) = ask(lake, "FROM rollouts WHERE rollout_id = 'r.1'")
        assert (counting["attempt_id"], counting["attempts"], counting["error"]) == ("c", 3, "c failed")
        assert [(r["rollout_id"], r["state"]) for r in ask(lake, "FROM rollouts ORDER BY rollout_id")] == [
            ("r.0", "counts"),
            ("r.1", "counts"),
            ("r.2", "unfinished"),
            ("r.3", "late"),
        ]


def test_an_attempt_of_a_plan_that_was_given_up_is_outside(tmp_path: Path) -> None:
    rows = [*simple(0).rows, *simple(1).rows]
    lake, epoch = derived(tmp_path / "planned", rows, planned=["r.0"])
    assert {r["rollout_id"]: r["state"] for r in ask(lake, "FROM attempts")} == {"r.0": "counts", "r.1": "outside"}
    lake, epoch = derived(
        tmp_path / "anew", [row | {"record_offset": row["record_offset"] + 10 * (i >= 3)} for i, row in enumerate(rows)]
    )
    underived(lake, epoch)
    sealed_at(lake, epoch, 100, opened_offset=10)
    assert {r["rollout_id"]: r["state"] for r in ask(lake, "FROM attempts")} == {"r.0": "outside", "r.1": "counts"}


def test_rollouts_have_the_reward_that_was_derived_and_before_that_the_last_emitted(tmp_path: Path) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    attempt.root(outcome="timeout", error="too slow")
    attempt.reward(0.25, at=0.5)
    attempt.reward(0.75, at=0.6)
    attempt.reward(9.0, at=0.9, name="style")
    attempt.reward(float("nan"), at=0.95)
    lake, epoch = derived(tmp_path, attempt.rows, failure_reward=-1.0)
    columns = "SELECT reward, success, outcome FROM rollouts"
    assert ask(lake, columns) == [{"reward": -1.0, "success": False, "outcome": "timeout"}]
    assert len(ask(lake, "FROM rewards")) == 4
    underived(lake, epoch)
    assert ask(lake, columns) == [{"reward": 0.75, "success": None, "outcome": "timeout"}]


@pytest.mark.parametrize(
    ("algorithm", "untrainable", "demonstration"),
    [("sft", "guided", True), ("sft", "greedy", False), ("sft", None, False), ("grpo", "guided", False)],
)
def test_a_demonstration_is_a_rollout_of_sft_with_a_call_that_was_held_to_a_text(
    tmp_path: Path, algorithm: str, untrainable: str | None, demonstration: bool
) -> None:
    attempt = Attempt()
    attempt.root()
    attempt.call([1], [2], untrainable=untrainable)
    lake, _ = derived(tmp_path, attempt.rows, algorithm=algorithm)
    assert ask(lake, "SELECT demonstration FROM rollouts") == [{"demonstration": demonstration}]


def test_a_call_seen_twice_is_one_call_and_the_gateways_stands_for_it(tmp_path: Path) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    root = attempt.root()
    agent = attempt.agent("planner", parent=root)
    seen = attempt.span("ChatCompletion", (0.19, 0.31), agent, op="llm", response_id="chatcmpl-7", output_tokens=2)
    call = attempt.call([1, 2], [3, 4], response_id="chatcmpl-7", input_tokens=2, output_tokens=2)
    other = attempt.span("ChatCompletion", (0.4, 0.5), agent, op="llm", response_id="x-1", model="gpt", output_tokens=5)
    attempt.reward(1.0)
    lake, epoch = derived(tmp_path, attempt.rows)
    for live in (False, True):
        if live:
            underived(lake, epoch)
        found = {r["span_id"]: r for r in ask(lake, "FROM calls")}
        assert {i: r["twin_of"] for i, r in found.items()} == {seen: call, call: None, other: None}
        assert found[call]["recorded_by"] == "gateway"
        assert found[other]["recorded_by"] == "instrumentation"
        assert [(r["calls"], r["response_tokens"]) for r in ask(lake, "FROM rollouts")] == [(2, 7)]
        if not live:
            assert {r["agent"] for r in found.values()} == {"planner"}
        usage = ask(lake, "SELECT policy, model, calls, response_tokens, share FROM token_usage")
        assert usage == [
            {"policy": None, "model": "gpt", "calls": 1, "response_tokens": 5, "share": 5 / 7},
            {"policy": "policy", "model": None, "calls": 1, "response_tokens": 2, "share": 2 / 7},
        ]


@pytest.mark.parametrize("live", [False, True])
def test_a_tool_call_seen_twice_is_one_and_failed_if_either_record_says_so(tmp_path: Path, live: bool) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    agent = attempt.agent("planner", parent=attempt.root())
    said = {"op": "tool", "tool_name": "search", "tool_call_id": "c1"}
    outer = attempt.span("execute_tool", (0.2, 0.5), agent, **said)
    attempt.span("search.run", (0.25, 0.45), outer, status="error", error="no net", tool_result="nothing", **said)
    attempt.span("search", (0.6, 0.7), agent, **(said | {"tool_call_id": "c2"}))
    lake, epoch = derived(tmp_path, attempt.rows)
    if not live:
        assert [row["tool_calls"] for row in ask(lake, "FROM agents WHERE agent = 'planner'")] == [2]
    else:
        underived(lake, epoch)
    found = ask(lake, "FROM tool_calls ORDER BY started")
    assert [(row["tool_call_id"], row["failed"], row["error"]) for row in found] == [
        ("c1", True, "no net"),
        ("c2", False, None),
    ]
    assert (found[0]["span_id"], found[0]["tool_result"]) == (outer, "nothing")


def test_of_two_instrumentations_the_earlier_record_stands_for_the_call(tmp_path: Path) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    attempt.root()
    outer = attempt.span("ChatOpenAI", (0.2, 0.4), op="llm", response_id="x")
    inner = attempt.span("ChatCompletion", (0.25, 0.35), op="llm", response_id="x")
    lake, epoch = derived(tmp_path, attempt.rows)
    underived(lake, epoch)
    assert {r["span_id"]: r["twin_of"] for r in ask(lake, "FROM calls")} == {outer: None, inner: outer}


PUSHED = (
    *("spans", "attempts", "calls", "tool_calls", "rewards", "rollouts", "errors", "call_twins"),
    *("span_tree", "policy_calls", "triplets"),
)


@pytest.fixture(scope="module")
def two_rollouts(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake, _ = derived(tmp_path_factory.mktemp("two"), team(0).rows + team(1).rows)
    lake.rebuild_catalog()
    return lake


@pytest.mark.parametrize("view", PUSHED)
def test_one_rollouts_rows_are_found_without_reading_the_others(two_rollouts: Lake, view: str) -> None:
    with catalog.connect(two_rollouts.root) as con:
        ((_, plan),) = con.execute(f"EXPLAIN (FORMAT json) FROM {view} WHERE rollout_id = 'r.1'").fetchall()
    scans = [node for node in _nodes(json.loads(plan)) if "READ_PARQUET" in json.dumps(node.get("extra_info", {}))]
    assert scans
    for scan in scans:
        if "rollout_id" in scan["extra_info"]["Projections"]:  # else: which epochs are derived at all
            assert "rollout_id" in json.dumps(scan["extra_info"].get("Filters", "")), scan["extra_info"]


def _nodes(plan: Any) -> list[dict[str, Any]]:
    if isinstance(plan, list):
        return [node for part in plan for node in _nodes(part)]
    return [plan, *_nodes(plan.get("children", []))]


def test_times_are_those_of_the_spans(tmp_path: Path) -> None:
    lake, _ = derived(tmp_path, simple(0).rows)
    (row,) = ask(lake, "SELECT epoch_ns(started) AS started, epoch_ns(ended) AS ended FROM attempts")
    assert (row["started"], row["ended"]) == (100 * SECOND, 101 * SECOND)
