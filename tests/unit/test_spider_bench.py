"""bench/spider.py: a row for each held-out question, the gain over databases, and the tables that are written of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import duckdb
import pytest

from bench import spider

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


def question(arm: str, fold: int, database: str, before: str, after: str) -> dict[str, Any]:
    common = {"arm": arm, "fold": fold, "db_id": database, "id": "1", "kind": "join", "commit": "abc1234"}
    return common | {"before": before, "after": after}


def test_a_question_has_its_outcome_before_training_and_after() -> None:
    con = duckdb.connect()
    con.execute(ROWS)
    asked = con.execute(spider.OUTCOMES.read_text(), {"run": "r"}).fetchall()
    assert sorted(spider.pairs(asked, 2), key=lambda row: row["id"]) == [
        {"id": "7", "db_id": "zoo", "kind": "join", "before": "does not run", "after": "right"},
        {"id": "8", "db_id": "bar", "kind": "nested", "before": "wrong", "after": "no query"},
    ]


def test_the_interval_is_over_databases() -> None:
    better = [question("both", 0, "zoo", "wrong", "right") for _ in range(90)]
    worse = [question("both", 0, "bar", "right", "wrong") for _ in range(10)]
    assert spider.gain(better + worse) == pytest.approx(0.8)
    assert spider.interval(better + worse) == [-1, 1], "with two databases, a draw may have one of them alone"


def test_figures_and_table_show_what_was_run(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [question("both", fold, f"db{fold}", "does not run", "right") for fold in (0, 1)]
    rows += [question("shuffled", 0, "db0", "right", "right")]
    spider.print_figures(rows)
    assert '"gained": 1' in capsys.readouterr().out.splitlines()[0]
    lines = spider.table(rows).splitlines()
    assert [line.split("|")[1:3] for line in lines[2:6]] == [
        [" both ", " 0 "], [" both ", " 1 "], [" both ", " all "], [" shuffled ", " 0 "]
    ]  # fmt: skip
    assert "| +1.000 (+1.000 to +1.000) | 100% → 0% | abc1234 |" in lines[2]
    assert lines[-1] == "| join | 2 | 0.0% | 100.0% |"


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
