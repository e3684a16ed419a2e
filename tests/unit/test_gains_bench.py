"""bench/gains.py: what became of each held-out task, the gain with its interval, and the tables that are written of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from bench import gains
from lightning_core.settings_file import load_settings

ROWS = """
    CREATE TABLE rollouts AS FROM (VALUES
        ('r', 0, 'evaluate', 'counts', 'a', 'a1', 0.0, '{"id": "7", "db_id": "zoo", "query": "SELECT a FROM b JOIN c"}'),
        ('r', 2, 'evaluate', 'counts', 'b', 'b1', 1.0, '{"id": "7", "db_id": "zoo", "query": "SELECT a FROM b JOIN c"}'),
        ('r', 0, 'evaluate', 'counts', 'c', 'c1', 0.0, '{"id": "8", "db_id": "bar", "query": "select a from b where c in (select d from e)"}'),
        ('r', 2, 'evaluate', 'counts', 'd', 'd1', 0.0, '{"id": "8", "db_id": "bar", "query": "select a from b where c in (select d from e)"}'),
        ('r', 0, 'train', 'counts', 'e', 'e1', 1.0, '{"id": "9", "db_id": "bar", "query": "SELECT a FROM b"}'),
        ('other', 0, 'evaluate', 'counts', 'f', 'f1', 1.0, '{"id": "9", "db_id": "bar", "query": "SELECT a FROM b"}')
    ) AS rows (run, epoch, mode, state, rollout_id, attempt_id, reward, task);
    CREATE TABLE rewards AS FROM (VALUES
        ('a1', 'grader', 'does not run: no such column: x'), ('b1', 'grader', 'right'), ('c1', 'grader', 'wrong: 0 rows')
    ) AS rows (attempt_id, source, words);
"""


def task(unit: str, before: str, after: str, **more: Any) -> dict[str, Any]:
    told = {"before": {"outcome": before} | more, "after": {"outcome": after} | more}
    return {"id": "1", "unit": unit, "kind": "join"} | told


def row(arm: str, seed: int, *tasks: dict[str, Any]) -> dict[str, Any]:
    common = {"experiment": "spider", "arm": arm, "seed": seed, "commit": "abc1234", "rollouts": 8}
    return common | {"tasks": list(tasks)}


def test_a_task_has_its_outcome_before_training_and_after() -> None:
    con = duckdb.connect()
    con.execute(ROWS)
    asked = gains.before_and_after(con, gains.EXPERIMENTS["spider"].outcomes, "r", 2)
    assert sorted(asked, key=lambda found: found["id"]) == [
        {
            "id": "7",
            "unit": "zoo",
            "kind": "join",
            "before": {"outcome": "does not run"},
            "after": {"outcome": "right"},
        },
        {"id": "8", "unit": "bar", "kind": "nested", "before": {"outcome": "wrong"}, "after": {"outcome": "no query"}},
    ]


def test_the_interval_is_over_units() -> None:
    better = [task("zoo", "wrong", "right") for _ in range(90)]
    worse = [task("bar", "right", "wrong") for _ in range(10)]
    assert gains.gain(better + worse) == pytest.approx(0.8)
    assert gains.interval(better + worse) == [-1, 1], "with two units, a draw may have one of them alone"


def test_figures_and_table_show_what_was_run(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("both", seed, task(f"db{seed}", "does not run", "right", calls=seed)) for seed in (0, 1)]
    rows += [row("shuffled", 0, task("db0", "right", "right", calls=None))]
    gains.print_figures("spider", rows)
    both, shuffled = map(json.loads, capsys.readouterr().out.splitlines())
    assert (both["name"], both["gained"], both["by_seed"], both["facts"]["calls"]) == (
        "spider_both",
        1,
        [1, 1],
        [0.5, 0.5],
    )
    assert (shuffled["value"], shuffled["baseline"], shuffled["facts"]["calls"]) == (1, 1, [0, 0])
    lines = gains.table("spider", rows).splitlines()
    assert lines[2] == "| both | 0 | 1 | 0.0% | 100.0% | +1.000 (+1.000 to +1.000) | 8 | abc1234 |"
    assert [line.split("|")[1:3] for line in lines[2:6]] == [
        [" both ", " 0 "], [" both ", " 1 "], [" both ", " all "], [" shuffled ", " 0 "]
    ]  # fmt: skip
    assert "| outcome: does not run | 100.0% | 0.0% |" in lines and "| right, of 2 join | 0.0% | 100.0% |" in lines


def test_every_experiment_has_its_settings_and_its_place_on_the_page() -> None:
    for name, experiment in gains.EXPERIMENTS.items():
        settings = load_settings(experiment.settings)
        assert settings.evaluation.every == settings.epochs, "evaluated before and after alone"
        assert f"<!-- gains: {name} -->" in gains.PAGE.read_text()
        for arm, changes in experiment.arms.items():
            assert load_settings(experiment.settings, changes) != settings, arm


def test_the_folds_hold_out_each_database_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path("examples/spider").absolute()))
    spec = importlib.util.spec_from_file_location("spider_tasks", "examples/spider/tasks.py")
    assert spec is not None and spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    folds = [tasks.BY_SIZE[fold :: tasks.FOLDS] for fold in range(tasks.FOLDS)]
    assert sorted(name for fold in folds for name in fold) == sorted(tasks.BY_SIZE)
    assert len(set(tasks.BY_SIZE)) == 15
    monkeypatch.setenv("SPIDER_FOLD", "3")
    with pytest.raises(ValueError, match="set it to 0, 1 or 2"):
        tasks.fold_train()


def test_the_curve_has_a_band_over_groups_and_counts_rollouts() -> None:
    con = duckdb.connect()
    con.execute("""CREATE TABLE rollouts AS
        SELECT 'r' AS run, epoch, 'train' AS mode, 'counts' AS state, format('{}-{}', epoch, task) AS group_id,
            (task = 0)::DOUBLE AS reward
        FROM range(5) AS epochs (epoch), range(2) AS tasks (task), range(3)""")
    curve = con.execute(gains.CURVE.read_text(), {"run": "r"}).fetchall()
    assert [(point[0], point[1]) for point in curve] == [(24, 0.5), (30, 0.5)]
    assert curve[0][2] == pytest.approx(0.5 - 1.96 * (8 / 28) ** 0.5 / 8**0.5)
    assert curve[1][2:] == (0.0, 1.0), "two groups say little"


def test_the_page_shows_answers_of_the_newest_run_in_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gains, "PAGE", tmp_path / "tasks.md")
    answer: dict[str, Any] = {
        "task": "How many?",
        "output_before": None,
        "error_before": "no `x`",
        "error_after": None,
    }
    answer |= {"output_after": "SELECT\n1 " + "x" * 300, "reward_before": 0.0, "reward_after": 1.0}
    rows = [row("both", 0), row("both", 1) | {"answers": [answer], "curve": [[8, 0.2, 0.1, 0.3], [16, 0.4, 0.3, 0.5]]}]
    shown = gains.answers("spider", rows)
    assert "- How many?\n  - before, reward 0: `no 'x'`\n  - after, reward 1: `SELECT 1 xxx" in shown
    assert all(len(line) < 240 for line in shown.splitlines())
    assert (
        "gain-spider.svg" in gains.draw("spider", rows) and "both 1 40%" in (tmp_path / "gain-spider.svg").read_text()
    )
    assert gains.draw("spider", rows[:1]) == gains.answers("spider", rows[:1]) == ""
