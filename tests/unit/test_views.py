"""The views of the catalog over small lakes: what they count, and what they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lightning_core.lake import catalog
from lightning_core.lake.derive import derive
from lightning_core.lake.derived_tables import COLUMNS
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from tests.lake_maker import SECOND, Attempt, derived, settings

Rows = list[dict[str, Any]]


def ask(lake: Lake, question: str) -> Rows:
    """Rows of a question to the catalog, which is built at the first one."""
    if not (lake.root / "catalog.duckdb").exists():
        lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        relation = con.sql(question)
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def simple(number: int, **root: Any) -> Attempt:
    """A rollout of one group with one call and a reward equal to its number modulo two."""
    attempt = Attempt(rollout=f"r.{number}", attempt=f"a{number}", start=100.0 + 10 * number)
    attempt.root(**root)
    attempt.call([1, 2, 3], [4, 5], input_tokens=3, output_tokens=2)
    attempt.reward(float(number % 2))
    return attempt


def sealed_at(lake: Lake, epoch: EpochManifest, offset: int, **changes: Any) -> None:
    epoch.sealed_offset = offset
    for name, value in changes.items():
        setattr(epoch, name, value)
    put(lake, epoch)


def put(lake: Lake, epoch: EpochManifest) -> None:
    lake.manifests.put_epoch(epoch)
    (lake.root / "catalog.duckdb").unlink(missing_ok=True)


def underived(lake: Lake, epoch: EpochManifest) -> None:
    """As it is while the epoch runs: spans and a manifest, no derived table."""
    epoch.tables = {}
    put(lake, epoch)


def test_every_view_is_there_and_empty_before_the_first_epoch(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for view in (*catalog.VIEWS, *COLUMNS):
        assert ask(lake, f"FROM {view}") == [], view


def test_the_declared_columns_of_derived_tables_are_those_that_are_derived(tmp_path: Path) -> None:
    lake, epoch = derived(tmp_path, simple(0).rows + simple(1).rows)
    of_a_finetuning = {"finetune_rollouts"}  # tests/unit/test_finetune.py
    assert set(epoch.tables) == set(COLUMNS) - of_a_finetuning
    with duckdb.connect() as con:
        for name, columns in COLUMNS.items():
            if name in of_a_finetuning:
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


def test_other_content_under_the_same_ids_is_another_span(tmp_path: Path) -> None:
    attempt = simple(0)
    for name in ("search", "read"):
        attempt.span(name, (0.4, 0.5), op="tool", tool_name=name, span_id="cd" * 8)
    lake, _ = derived(tmp_path, attempt.rows)
    assert sorted(r["tool"] for r in ask(lake, "FROM tool_calls")) == ["read", "search"]
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
    assert ask(lake, "SELECT calls, output_tokens FROM rollouts") == [{"calls": 2, "output_tokens": 17}]
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


@pytest.mark.parametrize("live", [False, True])
def test_attempts_say_what_became_of_every_execution(tmp_path: Path, live: bool) -> None:
    rows = attempts_of_all_kinds()
    lake, epoch = derived(tmp_path, rows)
    epoch.sealed_offset = 500
    derive(lake, epoch, settings(tmp_path), "sealed")
    put(lake, epoch)
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


@pytest.mark.parametrize("live", [False, True])
def test_a_call_seen_twice_is_one_call_and_the_gateways_stands_for_it(tmp_path: Path, live: bool) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    root = attempt.root()
    agent = attempt.agent("planner", parent=root)
    seen = attempt.span("ChatCompletion", (0.19, 0.31), agent, op="llm", response_id="chatcmpl-7", output_tokens=2)
    call = attempt.call([1, 2], [3, 4], response_id="chatcmpl-7", input_tokens=2, output_tokens=2)
    other = attempt.span("ChatCompletion", (0.4, 0.5), agent, op="llm", response_id="x-1", model="gpt", output_tokens=5)
    attempt.reward(1.0)
    lake, epoch = derived(tmp_path, attempt.rows)
    if live:
        underived(lake, epoch)
    found = {r["span_id"]: r for r in ask(lake, "FROM calls")}
    assert {i: r["twin_of"] for i, r in found.items()} == {seen: call, call: None, other: None}
    assert found[call]["recorded_by"] == "gateway"
    assert found[other]["recorded_by"] == "instrumentation"
    assert [(r["calls"], r["output_tokens"]) for r in ask(lake, "FROM rollouts")] == [(2, 7)]
    if not live:
        assert {r["agent"] for r in found.values()} == {"planner"}
    usage = ask(lake, "SELECT policy, model, calls, response_tokens, share FROM token_usage")
    assert usage == [
        {"policy": None, "model": "gpt", "calls": 1, "response_tokens": 5, "share": 5 / 7},
        {"policy": "policy", "model": None, "calls": 1, "response_tokens": 2, "share": 2 / 7},
    ]


def test_of_two_instrumentations_the_earlier_record_stands_for_the_call(tmp_path: Path) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    attempt.root()
    outer = attempt.span("ChatOpenAI", (0.2, 0.4), op="llm", response_id="x")
    inner = attempt.span("ChatCompletion", (0.25, 0.35), op="llm", response_id="x")
    lake, epoch = derived(tmp_path, attempt.rows)
    underived(lake, epoch)
    assert {r["span_id"]: r["twin_of"] for r in ask(lake, "FROM calls")} == {outer: None, inner: outer}


def team(number: int) -> Attempt:
    """An orchestrator that calls a coder, which calls a tool that fails."""
    attempt = Attempt(rollout=f"r.{number}", attempt=f"a{number}")
    root = attempt.root()
    boss = attempt.agent("orchestrator", (0.1, 0.9), root)
    coder = attempt.agent("coder", (0.3, 0.8), boss)
    attempt.call([1], [2, 2], (0.15, 0.25), boss, input_tokens=1, output_tokens=2)
    attempt.call([7], [8], (0.35, 0.4), coder, input_tokens=1, output_tokens=1)
    attempt.span("search", (0.5, 0.6), coder, op="tool", tool_name="search", status="error", status_message="no net")
    attempt.reward(float(number))
    return attempt


def test_agents_shows_who_was_there_who_matched_and_what_each_gave(tmp_path: Path) -> None:
    lake, _ = derived(tmp_path, team(0).rows + team(1).rows, agent_match="coder")
    coder, boss = ask(lake, "FROM agents ORDER BY agent")
    assert (coder["agent"], coder["agent_path"]) == ("coder", "orchestrator/coder")
    assert coder["matched"] == coder["policies"] == ["policy"]
    counts = (
        "rollouts",
        "calls",
        "tool_calls",
        "errors",
        "trained_calls",
        "left_out",
        "prompt_tokens",
        "response_tokens",
    )
    assert [coder[c] for c in counts] == [2, 2, 2, 2, 2, 0, 2, 2]
    assert (boss["agent"], boss["policies"], boss["matched"]) == ("orchestrator", ["policy"], [])
    assert [boss[c] for c in counts] == [2, 2, 0, 0, 0, 2, 2, 4]


def test_an_evaluation_has_agents_and_no_training(tmp_path: Path) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    root = attempt.root(mode="evaluate")
    attempt.call([1], [2], parent=attempt.agent("solo", parent=root))
    lake, _ = derived(tmp_path, attempt.rows, mode="evaluate")
    (agent,) = ask(lake, "FROM agents")
    assert (agent["mode"], agent["agent"], agent["calls"], agent["trained_calls"]) == ("evaluate", "solo", 1, None)


def test_errors_have_run_agent_and_message(tmp_path: Path) -> None:
    rows = team(0).rows + simple(3, outcome="error", error="ValueError: x").rows
    lake, _ = derived(tmp_path, rows)
    found = ask(lake, "SELECT op, agent, outcome, message, run, epoch FROM errors ORDER BY op")
    assert found == [
        {"op": "rollout", "agent": None, "outcome": "error", "message": "ValueError: x", "run": "run", "epoch": 0},
        {"op": "tool", "agent": "coder", "outcome": "error", "message": "no net", "run": "run", "epoch": 0},
    ]


def test_latency_has_quantiles_of_calls_first_tokens_tools_and_rollouts(tmp_path: Path) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    attempt.root(at=(0.0, 10.0))
    for n in range(1, 11):
        attempt.call([n], [1], (n / 100, n / 100 + n / 1000), first_token_ms=float(n))
    attempt.span("read", (0.5, 0.75), op="tool", tool_name="read")
    attempt.span("hangs", (0.5, 0.75), op="tool", tool_name="hangs", end_ns=None)
    lake, _ = derived(tmp_path, attempt.rows)
    found = {(r["step"], r["name"]): r for r in ask(lake, "FROM latency")}
    assert set(found) == {("call", "policy"), ("first token", "policy"), ("tool", "read"), ("rollout", None)}
    call = found["call", "policy"]
    assert (call["n"], call["max_ms"]) == (10, pytest.approx(10.0))
    assert [call[q] for q in ("p50_ms", "p90_ms", "p99_ms")] == pytest.approx([5.5, 9.1, 9.91])
    assert found["first token", "policy"]["p50_ms"] == pytest.approx(5.5)
    assert found["rollout", None]["p50_ms"] == pytest.approx(10_000)


def test_staleness_is_the_epochs_version_less_the_calls_and_the_oldest_of_a_swap_counts(tmp_path: Path) -> None:
    attempt = Attempt(rollout="r.0", attempt="a")
    attempt.root()
    for n, version in enumerate(("v0007", "v0007", "v0006,v0007", "v0004", None)):
        attempt.call([n], [1], (n / 10, n / 10 + 0.05), policy_version=version, output_tokens=1)
    lake, epoch = derived(tmp_path, attempt.rows)
    sealed_at(lake, epoch, 1000, versions={"policy": "v0007"})
    found = {r["policy_version"]: (r["lag"], r["calls"], r["share"]) for r in ask(lake, "FROM staleness")}
    assert found == {
        "v0007": (0, 2, 0.4),
        "v0006,v0007": (1, 1, 0.2),
        "v0004": (3, 1, 0.2),
        None: (None, 1, 0.2),
    }


def test_drift_counts_calls_whose_history_came_back_as_other_tokens(tmp_path: Path) -> None:
    def said(*texts: str) -> str:
        return json.dumps([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)])

    rows: Rows = []
    for number, again in enumerate(([4, 5], [45])):
        attempt = Attempt(rollout=f"r.{number}", attempt=f"a{number}")
        attempt.root()
        reply = {"output_messages": json.dumps([{"role": "assistant", "content": "four five"}])}
        attempt.call([1, 2, 3], [4, 5], (0.1, 0.2), input_messages=said("count"), **reply)
        attempt.call([1, 2, 3, *again, 6], [7], (0.3, 0.4), input_messages=said("count", "four five", "on"), **reply)
        attempt.reward(float(number))
        rows += attempt.rows
    lake, _ = derived(tmp_path, rows)
    (found,) = ask(lake, "FROM drift")
    assert (found["calls"], found["drifted"], found["share"]) == (2, 1, 0.5)
    assert found["first_position"] == 3
    assert found["drifted_tokens"] == 2


def test_epochs_count_what_came_late_and_what_was_rejected(tmp_path: Path) -> None:
    on_time, behind = simple(0), simple(1)
    behind.span("step", (0.8, 0.9), record_offset=600)
    behind.span("step", (0.85, 0.9), record_offset=700)
    lake, epoch = derived(tmp_path, on_time.rows + behind.rows)
    sealed_at(lake, epoch, 600, planned=["r.0", "r.1", "r.2"])
    rejected = lake.spool / "rejected"
    rejected.mkdir(parents=True)
    lines = [
        {
            "offset": 3,
            "index": 0,
            "reason": "a span without trace id or span id",
            "rollout_id": "r.1",
            "attempt_id": "a1",
        },
        {"offset": 5, "index": None, "reason": "no OTLP request", "count": 4},
        {"offset": 5000, "index": 0, "reason": "of another epoch"},
    ]
    (rejected / f"{0:020d}-{6000:020d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = ask(lake, "FROM epochs")
    assert (row["rollouts"], row["unfinished"], row["failed"], row["mean_reward"]) == (2, 1, 0, 0.5)
    assert (row["late"], row["rejected"], row["calls"]) == (2, 5, 2)
    late = ask(lake, "SELECT count(*) AS n FROM spans WHERE record_offset >= 600")
    assert late == [{"n": 2}], "they are kept"


def test_an_epoch_is_there_from_the_moment_it_is_opened(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.open_epoch("run", 0, "train", {"policy": "v0000"})
    (row,) = ask(lake, "FROM epochs")
    assert (row["run"], row["epoch"], row["sealed"], row["rollouts"], row["late"]) == ("run", 0, False, 0, 0)
    assert row["versions"] == {"policy": "v0000"}


def test_exclusion_reasons_are_shares_of_the_policys_calls(tmp_path: Path) -> None:
    lake, _ = derived(tmp_path, team(0).rows + team(1).rows, agent_match="coder")
    assert ask(lake, "SELECT policy, reason, calls, rollouts, share FROM exclusion_reasons") == [
        {"policy": "policy", "reason": "agent_not_matched", "calls": 2, "rollouts": 2, "share": 0.5}
    ]


def test_two_epochs_and_an_evaluation_are_kept_apart(tmp_path: Path) -> None:
    rows = simple(0).rows + simple(1).rows
    for number, (epoch, mode) in enumerate([(1, "train"), (1, "train"), (1, "evaluate")], 2):
        rows += simple(number, epoch=epoch, mode=mode).rows
    lake, _ = derived(tmp_path, rows)
    for mode in ("train", "evaluate"):
        epoch = EpochManifest(run="run", epoch=1, mode=mode, opened_offset=0, sealed_offset=1 << 40)  # type: ignore[arg-type]
        derive(lake, epoch, settings(tmp_path), "key")
        put(lake, epoch)
    counts = [(0, "train", 2), (1, "evaluate", 1), (1, "train", 2)]
    for view, n in (("epochs", "rollouts"), ("agents", "calls"), ("token_usage", "calls"), ("staleness", "calls")):
        found = ask(lake, f"SELECT epoch, mode, {n} AS n FROM {view} ORDER BY epoch, mode")
        assert [(r["epoch"], r["mode"], r["n"]) for r in found] == counts, view


PUSHED = ("spans", "attempts", "calls", "tool_calls", "rewards", "rollouts", "errors", "call_twins")


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
