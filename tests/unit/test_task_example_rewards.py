"""Rewards, made-up databases and held-out tasks of examples/calc_x, spider and musique."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def module(example: str, name: str) -> ModuleType:
    """A file of an example; what it imports beside itself is found too, and is forgotten again."""
    folder = EXAMPLES / example
    spec = importlib.util.spec_from_file_location(f"{example}_{name}", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(folder))
        for beside in {file.stem for file in folder.glob("*.py")} - before:  # `tasks` is the project's, too
            sys.modules.pop(beside, None)
    return made


@pytest.mark.parametrize(
    ("output", "reward"),
    [
        ("so it is\n### ANSWER: 1,234", 1.0),
        ("### answer: $1234.00", 1.0),
        ("### ANSWER: 1\n### ANSWER: 1234", 1.0),
        ("### ANSWER: 1234\n### ANSWER: 1", 0.0),
        ("1234", 0.0),
        (None, 0.0),
    ],
)
def test_calc_x_takes_the_last_tagged_number(output: Any, reward: float) -> None:
    assert module("calc_x", "reward").grade({"answer": "1234"}, output, []) == reward


@pytest.mark.parametrize(
    ("output", "reward"),
    [
        ("<answer>The G. Stanley Hall</answer>", 1.0),
        (
            "<answer>Hall</answer>",
            0.9 * 2 / 4 + 0.1,
        ),
        ("<answer>nobody</answer>", 0.1),
        ("G. Stanley Hall", 0.0),
        (None, 0.0),
    ],
)
def test_musique_is_f1_and_format(output: Any, reward: float) -> None:
    task = {"answer": "G. Stanley Hall", "answer_aliases": []}
    assert module("musique", "reward").grade(task, output, []) == pytest.approx(reward)


def test_musique_takes_the_best_of_the_right_answers() -> None:
    task = {"answer": "G. Stanley Hall", "answer_aliases": ["Stanley Hall"]}
    assert module("musique", "reward").grade(task, "<answer>Stanley Hall</answer>", []) == pytest.approx(1.0)


SCHEMA = {
    "db_id": "shop",
    "table_names_original": ["owner", "item", "sqlite_sequence"],
    "column_names_original": [
        [-1, "*"],
        [0, "id"],
        [0, "country"],
        [1, "id"],
        [1, "owner_id"],
        [1, "price"],
        [2, "seq"],
    ],
    "column_types": ["text", "number", "text", "number", "number", "number", "text"],
    "primary_keys": [1, 3],
    "foreign_keys": [[4, 1]],
}
QUERIES = ["SELECT id FROM owner WHERE country = 'France'", "SELECT id FROM item WHERE price > 1500 AND owner_id = 3"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    made: Path = module("spider", "databases").make(tmp_path, SCHEMA, QUERIES)
    return made


def test_a_made_database_holds_what_queries_ask_for_and_keys_that_meet(database: Path, tmp_path: Path) -> None:
    con = sqlite3.connect(database)
    assert con.execute("SELECT count(*) FROM owner WHERE country = 'France'").fetchone()[0] > 0
    assert con.execute("SELECT count(*) FROM item WHERE price = 1500").fetchone()[0] > 0
    assert con.execute(
        "SELECT count(*) FROM item LEFT JOIN owner ON owner.id = owner_id WHERE owner.id IS NULL"
    ).fetchone() == (0,)
    other: Path = module("spider", "databases").make(tmp_path / "again", SCHEMA, QUERIES)
    assert list(sqlite3.connect(other).iterdump()) == list(con.iterdump())


def test_spiders_small_run_holds_out_queries_with_every_question_that_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ("id", "country", "ID  ", "count(*)", "max(id)", "min(id)")
    rows = [{"db_id": "shop", "question": f"{n}?", "query": f"SELECT {n} FROM owner"} for n in columns]
    rows.append({"db_id": "shop", "question": "joined?", "query": "SELECT * FROM owner JOIN item"})
    (tmp_path / "spider_questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "spider_schemas.jsonl").write_text(json.dumps(SCHEMA))
    monkeypatch.setenv("LIGHTNING_DATA", str(tmp_path))
    monkeypatch.setenv("SPIDER_DATABASES", str(tmp_path / "databases"))
    tasks = module("spider", "tasks")
    assert [task["question"] for task in tasks.small_heldout()] == ["id?", "ID  ?"]
    assert [task["question"] for task in tasks.small()] == ["country?", "count(*)?", "max(id)?", "min(id)?"]


@pytest.mark.parametrize(
    ("gold", "answer", "words"),
    [
        ("SELECT id FROM owner", "SELECT id AS x FROM owner ORDER BY id DESC", "right"),
        ("SELECT id FROM owner ORDER BY id", "SELECT id FROM owner ORDER BY id DESC", "wrong: 24 rows [(24,)"),
        ("SELECT id FROM owner", "SELECT id FROM owner LIMIT 3", "wrong: 3 rows [(1,), (2,), (3,)], not 24 rows"),
        ("SELECT id FROM owner", "SELECT FROM", "does not run: near"),
        ("SELECT id FROM owner", "DROP TABLE owner", "does not run: attempt to write"),
        ("SELECT id FROM owner", "SELECT 1; SELECT 2", "does not run: You can only execute one statement"),
        ("SELECT id FROM owner", None, "does not run: "),
        (
            "SELECT id FROM owner",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
            "does not run: interrupted",
        ),
    ],
)
def test_spider_is_execution_match_and_says_what_was_wrong(
    database: Path, monkeypatch: pytest.MonkeyPatch, gold: str, answer: Any, words: str
) -> None:
    reward_module = module("spider", "reward")
    monkeypatch.setitem(reward_module.run.__globals__, "SECONDS", 0.2)
    graded = reward_module.grade({"database": str(database), "query": gold}, answer, [])
    assert graded["words"].startswith(words) and graded["reward"] == (1.0 if words == "right" else 0.0)
    assert sqlite3.connect(database).execute("SELECT count(*) FROM owner").fetchone() == (24,)
