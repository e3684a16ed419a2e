"""The views of the catalog that sum up epochs: agents, errors, latency, staleness, drift, what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, Mode
from tests.lake_maker import Attempt, derived, settings
from tests.view_rig import Rows, ask, put, sealed_at, simple, team

pytestmark = pytest.mark.slow  # many lakes


def test_agents_shows_who_was_there_who_matched_and_what_each_gave(tmp_path: Path) -> None:
    lake, epoch = derived(tmp_path, team(0).rows + team(1).rows, agent_match="coder", versions={"policy": "v0000"})
    assert [agent["trained_calls"] for agent in ask(lake, "FROM agents")] == [0, 0], "there is no training yet"
    epoch.finish("train policy", "key", {"version": "v0001", "metrics": {}}, 1.0)
    put(lake, epoch)
    coder, boss = ask(lake, "FROM agents ORDER BY agent")
    assert (coder["agent"], coder["agent_path"]) == ("coder", "orchestrator/coder")
    assert coder["matched"] == coder["policies"] == ["policy"]
    counts = (
        "rollouts",
        "calls",
        "tool_calls",
        "errors",
        "trained_calls",
        "left_out_calls",
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


def test_a_failure_of_an_agent_elsewhere_is_one_error_before_an_epoch_learns_from_it_and_after(tmp_path: Path) -> None:
    rows = []
    for name in ("learned", "open"):
        attempt = Attempt(rollout=name, attempt="1")
        attempt.span("rollout.opened", (0, 0), op="rollout.opened", sender="gateway")
        end = {"op": "rollout.ended", "outcome": "error", "error": "broke", "status": "error", "sender": "gateway"}
        attempt.span("rollout.ended", (0.5, 0.5), **end)
        if name == "learned":
            attempt.root(outcome="error", error="broke", status="error")
        rows += attempt.rows
    lake, _ = derived(tmp_path, rows)
    found = ask(lake, "SELECT rollout_id, op, outcome, message, run FROM errors ORDER BY rollout_id")
    assert [tuple(row.values()) for row in found] == [
        ("learned", "rollout", "error", "broke", "run"),
        ("open", "rollout.ended", "error", "broke", None),
    ]
    assert ask(lake, "SELECT op FROM span_tree") == [{"op": "rollout"}]


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
    found = {(r["kind"], r["name"]): r for r in ask(lake, "FROM latency")}
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
        attempt.call([n], [1], (n / 10, n / 10 + 0.05), policy_version=version, output_tokens=n + 1)
    lake, epoch = derived(tmp_path, attempt.rows)
    sealed_at(lake, epoch, 1000, versions={"policy": "v0007"})
    columns = ("lag", "calls", "share", "mean_response_tokens")
    found = {r["policy_version"]: tuple(r[name] for name in columns) for r in ask(lake, "FROM staleness")}
    assert found == {
        "v0007": (0, 2, 0.4, 1.5),
        "v0006,v0007": (1, 1, 0.2, 3),
        "v0004": (3, 1, 0.2, 4),
        None: (None, 1, 0.2, 5),
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
    assert (row["rollouts"], row["unfinished"], row["failed_rollouts"], row["mean_reward"]) == (2, 1, 0, 0.5)
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
    modes: tuple[Mode, Mode] = ("train", "evaluate")
    for made in modes:
        manifest = EpochManifest(run="run", epoch=1, mode=made, opened_offset=0, sealed_offset=1 << 40)
        derive(Epoch(settings(tmp_path), manifest), "key")
        put(lake, manifest)
    counts = [(0, "train", 2), (1, "evaluate", 1), (1, "train", 2)]
    for view, n in (("epochs", "rollouts"), ("agents", "calls"), ("token_usage", "calls"), ("staleness", "calls")):
        found = ask(lake, f"SELECT epoch, mode, {n} AS n FROM {view} ORDER BY epoch, mode")
        assert [(r["epoch"], r["mode"], r["n"]) for r in found] == counts, view
