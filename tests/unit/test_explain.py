"""`lightning-flows explain`: the tree, whose calls, which rewards, and why a call is trained on or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from lightning_core.lake.explain import explain, found_tree, repaired_tree, why_not
from lightning_core.lake.explain_view import view
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from lightning_flows.flows.cli import main
from tests.lake_maker import Attempt, derived

FAILING_TOOL = {"name": "failing-tool", "value": -0.1, "op": "tool", "status": "error"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rollouts of a group, each with two agents at once, a call that either could have made, a tool that failed, a
    span whose parent never came, and a grader's reward; given to calls."""
    rows: list[dict[str, Any]] = []
    for number in range(2):
        made = Attempt(f"task.{number}", f"a{number}")
        made.root()
        solver, critic = made.agent("solver"), made.agent("critic")
        made.call([1, 2], [3], (0.2, 0.25), solver)
        made.call([1, 9], [3], (0.3, 0.35), critic)
        made.call([5], [6], (0.5, 0.55))
        made.span("search", (0.26, 0.27), solver, op="tool", status="error")
        made.span("step", (0.4, 0.45), "dead")
        made.reward(float(number))
        made.reward(float("nan"), at=0.96)
        rows += made.rows
    broken = Attempt("task.2", "a2")
    broken.root("error", error="ValueError: no")
    folder = tmp_path_factory.mktemp("home")
    lake, _ = derived(folder, rows + broken.rows, assign="discounted", gamma=0.5, air=[FAILING_TOOL])
    lake.rebuild_catalog()
    return folder


def text(found: dict[str, Any]) -> str:
    console = Console(width=200, record=True, soft_wrap=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(view(found))
    return console.export_text()


def test_it_tells_reward_return_advantage_and_why_a_call_is_left_out(home: Path) -> None:
    found = explain(home / "lake", "task.1")
    assert [(c["agent"], c["return"], c["left_out"]) for c in found["calls"]] == [
        ("solver", pytest.approx(0.9), None),
        ("critic", 1.0, None),
        (None, None, "ambiguous_agent"),
    ]
    assert all(why_not(c, "train") == c["left_out"] for c in found["calls"])
    shown = text(found)
    assert "attempt a1: ok, 1.00 s; reward 0.9 (reward, -0.1 of it by rules)" in shown
    assert "return 0.9 against a mean of 0.4 over 2 rollouts" in shown
    assert "no: ambiguous_agent" in shown
    assert "place 1 of sequence" in shown and "new_conversation" in shown


def test_it_shows_the_tree_as_found_and_as_repaired_and_why(home: Path) -> None:
    found = explain(home / "lake", "task.1")
    shown = text(found)
    before, after = shown.split("Tree as repaired")
    assert "(missing)" not in before.split("Tree as found")[1]
    assert "agent solver" in after and "agent ambiguous" in after
    assert "← synthesised 0.00 of 2 candidates" in after and "a declared parent that never came" in after
    names = {row["node"]: row["name"] for row in found["spans"]}
    roots = [names[row["node"]] for depth, row in found_tree(found["spans"]) if depth == 0]
    assert sorted(set(roots)) == ["chat policy", "critic.run", "reward", "rollout", "solver.run", "step"]
    assert [names[row["node"]] for depth, row in repaired_tree(found["spans"]) if depth == 0] == ["rollout"]
    assert len(repaired_tree(found["spans"])) == len(found["spans"])


def test_parents_that_run_in_a_circle_are_all_shown() -> None:
    spans = [
        {"node": n, "trace_id": "t", "span_id": s, "declared_parent_id": p, "op": "other"}
        for n, (s, p) in enumerate([("a", "b"), ("b", "a"), ("c", "c"), ("d", "b")])
    ]
    assert [(depth, row["span_id"]) for depth, row in found_tree(spans)] == [(0, "c"), (0, "a"), (1, "b"), (2, "d")]


def test_rewards_say_which_calls_they_went_to(home: Path) -> None:
    rewards = explain(home / "lake", "task.1")["rewards"]
    went = {
        r["reward_name"]: sorted(c["agent"] or "" for c in r["calls"] if c["call_id"] is not None)
        for r in rewards
        if r["left_out"] is None
    }
    assert went == {"failing-tool": ["solver"], "reward": ["", "critic", "solver"]}


def test_an_example_is_explained_without_a_mean(tmp_path: Path) -> None:
    made = Attempt("task.0", "a")
    made.root()
    made.call([1], [2])
    made.reward(0.5)
    lake, _ = derived(tmp_path, made.rows, algorithm="sft")
    lake.rebuild_catalog()
    assert "return 0.5 among 1 rollouts: advantage 1" in text(explain(lake.root, "task.0"))


def test_an_attempt_without_calls_is_explained_too(home: Path) -> None:
    shown = text(explain(home / "lake", "task.2"))
    assert "a2: error (ValueError: no), 1.00 s; reward 0 (failure_reward)" in shown


def test_a_rollout_that_is_unknown_names_those_like_it(home: Path) -> None:
    with pytest.raises(LakeError, match=r"no rollout 'task\.7'; did you mean .*task\.1"):
        explain(home / "lake", "task.7")
    with pytest.raises(LakeError, match="is not in epoch 3; it is in run run epoch 0"):
        explain(home / "lake", "task.1", epoch=3)


def test_a_rollout_that_is_not_derived_yet_says_so(tmp_path: Path) -> None:
    made = Attempt("r.0", "a")
    made.root()
    lake, epoch = derived(tmp_path, made.rows)
    epoch.tables.clear()
    lake.manifests.put_epoch(epoch)
    lake.rebuild_catalog()
    with pytest.raises(LakeError, match="has 1 spans, but its epoch is not derived yet"):
        explain(tmp_path / "lake", "r.0")


def test_an_evaluation_is_explained_and_trains_nothing(tmp_path: Path) -> None:
    made = Attempt("r.0", "a")
    made.root(mode="evaluate")
    made.call([1], [2, 3], parent=made.agent("worker"))
    made.reward(1.0)
    derived(tmp_path, made.rows, mode="evaluate")[0].rebuild_catalog()
    found = explain(tmp_path / "lake", "r.0")
    (call,) = found["calls"]
    assert (call["agent"], call["policy_version"], call["prompt_tokens"], call["response_tokens"]) == (
        "worker",
        "v0000",
        1,
        2,
    )
    assert (found["mode"], call["advantage"], why_not(call, "evaluate")) == (
        "evaluate",
        None,
        "evaluation: nothing of it is trained on",
    )
    assert "reward 1 (reward)" in text(found)


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", *arguments])


def test_the_command_prints_text_or_json(home: Path) -> None:
    told = ask("task.0", "--home", str(home)).output
    assert "call 1, solver: policy v0000" in told and "Tree as repaired" not in told
    assert "Tree as repaired" in ask("task.0", "--home", str(home), "--tree").output
    found = json.loads(ask("task.0", "--home", str(home), "--format", "json").output)
    assert (found["rollout_id"], found["epoch"], len(found["calls"])) == ("task.0", 0, 3)
    assert [(r["reward"], r["left_out"]) for r in found["rewards"]][-1] == ("nan", "not_finite")
    wrong = ask("tsk.0", "--home", str(home))
    assert wrong.exit_code == 1 and "did you mean" in wrong.output


def test_a_rollout_is_chosen_by_its_task_or_by_what_became_of_it(home: Path) -> None:
    def first(*arguments: str) -> str:
        return ask(*arguments, "--home", str(home)).output.splitlines()[1]

    assert first("g").startswith("task.0, run run, epoch 0"), "g is the task"
    assert first("g", "--worst").startswith("task.0"), "its tool failed, which costs a tenth"
    assert first("--failed", "--epoch", "0").startswith("task.")
    assert "no rollout of that kind" in ask("--worst", "--epoch", "7", "--home", str(home)).output
    assert "choose by --worst or --failed" in ask("--home", str(home)).output


def test_it_is_no_wider_than_the_terminal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    told = ask("task.1", "--home", str(home), "--tree").output
    assert max(map(len, told.splitlines())) <= 72


def test_without_a_lake_it_says_so(tmp_path: Path) -> None:
    assert "no catalog yet" in ask("r.0", "--home", str(tmp_path)).output
    assert Lake(tmp_path).manifests.epochs() == []
