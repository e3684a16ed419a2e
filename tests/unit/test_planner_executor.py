"""The planner and the executor: their problems, what they do with what a model says, what it is worth, and the bench's table."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench import planner_executor as bench
from bench.planner_executor import table
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.plan import plan_evaluation
from lightning_core.settings_file import load_settings
from lightning_flows.tasks.preflight import evaluation_tasks

pytestmark = pytest.mark.slow  # imports of half a minute

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "planner_executor"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"planner_executor_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


agents, reward, tasks = load("agents"), load("reward"), load("tasks")


def test_problems_are_right_in_two_steps_and_none_is_held_out_and_trained() -> None:
    train, held_out = tasks.train_tasks(), tasks.heldout_tasks()
    assert (len(train), len(held_out)) == (1024, 64)
    assert not {t["expression"] for t in train} & {t["expression"] for t in held_out}
    for task in [*train, *held_out]:
        a, one, b, two, c = re.findall(r"\d+|[-+*]", task["expression"])
        assert agents.compute(a, one, b) == task["first"]
        assert agents.compute(str(task["first"]), two, c) == task["answer"] > 0
    operations = {"".join(c for c in t["expression"] if c in "+-*") for t in held_out[:4]}
    assert operations == {"*-", "+-", "*+", "++"}


def test_the_bench_asks_held_out_problems_that_the_prompts_were_not_chosen_on(tmp_path: Path) -> None:
    chosen_on = load_settings(FOLDER / "settings.yaml")
    reported = bench._settings(tmp_path, 0, "both")
    first, last = (
        [r.task.id for r in plan_evaluation(Run(s), evaluation_tasks(s.tasks), 0)] for s in (chosen_on, reported)
    )
    assert first == [f"heldout-{n:04d}" for n in range(32)] and last == [f"heldout-{n:04d}" for n in range(32, 64)]


@pytest.mark.parametrize(
    ("replies", "results", "worth"),
    [
        (["3 boxes with 12; loses 9", "calc(3*12)", "calc(36-9)"], [36, 27], 1.0),
        (["3 boxes with 12; loses 9; and more", "so calc(3*12)", "calc(36 - 9)."], [36, 27], 1.0),
        (["3 boxes with 12; loses 9", "calc(3*12)", "nine"], [36], 0.4),
        (["3 boxes with 12", "calc(3*12)"], [36], 0.4),
        (["3; 12", "calc(3+12)", "calc(15-9)"], [15, 6], 0.1),
        (["3; 12", "calc(2**9)"], [], 0.0),
        ([" ; "], [], 0.0),
    ],
)
def test_an_attempt_is_worth_what_its_steps_came_to(
    replies: list[str], results: list[int], worth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def ask(_: Any, model: str, __: Any, message: str, max_tokens: int) -> str:
        asked.append((model, message))
        return replies[len(asked) - 1]

    monkeypatch.setattr(agents, "ask", ask)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    task = {"question": "Ben has 3 boxes …", "first": 36, "answer": 27}
    outcome = agents.run(task)
    assert outcome["results"] == results and len(asked) == len(replies)
    assert [model for model, _ in asked] == ["planner"] + ["executor"] * (len(replies) - 1)
    assert reward.grade(task, outcome, None) == worth
    if len(replies) == 3:
        assert asked[2][1].startswith(f"{results[0]}; "), "the second step gets the first one's result"


@pytest.mark.parametrize("output", [None, "text", {}, {"results": []}])
def test_what_came_to_nothing_is_worth_nothing(output: Any) -> None:
    assert reward.grade({"first": 1, "answer": 2}, output, None) == 0.0


def test_the_table_has_a_line_a_variant_with_the_interval_over_its_seeds() -> None:
    def row(trained: str, seed: int, right: float, rewards: list[float]) -> dict[str, Any]:
        return {"trained": trained, "seed": seed, "rollouts": 64, "right": right, "reward_by_epoch": rewards}

    rows = [row("none", 0, 0.25, []), *(row("both", s, r, [0.1, 0.3]) for s, r in enumerate((0.4, 0.5, 0.6)))]
    lines = table(rows).splitlines()[2:]
    assert lines[0].startswith("| none | 1 | 64 | 25.0% | – |")
    # 0.5 ± 4.303 · 0.1 / √3
    assert lines[1] == "| both | 3 | 64 | 50.0% | 25.2% to 74.8% | 40.0%, 50.0%, 60.0% | 0.10 → 0.30 |"


def test_what_has_a_row_is_not_run_again_and_the_untrained_model_is_evaluated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ROWS", tmp_path / "rows.jsonl")
    trained = [(seed, name) for seed in range(2) for name in ("planner", "executor", "both")]
    assert bench._missing(2) == [(0, "none"), *trained]
    bench.ROWS.write_text('{"trained": "none", "seed": 0}\n{"trained": "both", "seed": 1}\n')
    assert bench._missing(2) == trained[:-1]
