"""Questions over databases, by path: `$LIGHTNING_DATA` holds spider_questions.jsonl and spider_schemas.jsonl.

Databases are made from the schemas in `$SPIDER_DATABASES` (default: var/spider). Where that folder holds real ones, named
<db_id>.sqlite, they are taken. Held out are whole databases: a query for one that was trained on is half known. The small
run, whose model does not get to copying names it never saw, holds out queries instead, with all questions that ask for them.
"""

import json
import os
from pathlib import Path
from typing import Any

from databases import make, outline

HELD_OUT = ("concert_singer", "voter_1", "battle_death", "real_estate_properties", "tvshow", "network_1")


def train() -> list[dict[str, Any]]:
    return [task for task in _tasks() if task["db_id"] not in HELD_OUT]


def heldout() -> list[dict[str, Any]]:
    return [task for task in _tasks() if task["db_id"] in HELD_OUT]


def small() -> list[dict[str, Any]]:
    return _small(False)


def small_heldout() -> list[dict[str, Any]]:
    return _small(True)


def _small(held_out: bool) -> list[dict[str, Any]]:
    """Of the short queries, every fifth of those that differ is held out."""
    tasks = [task for task in train() if _is_small(task)]
    queries = dict.fromkeys(_query(task) for task in tasks)
    kept_back = set(list(queries)[::5])
    return [task for task in tasks if (_query(task) in kept_back) == held_out]


def _query(task: dict[str, Any]) -> tuple[str, str]:
    """Database and query, however it is written."""
    return task["db_id"], "".join(task["query"].upper().rstrip("; ").split())


def _is_small(task: dict[str, Any]) -> bool:
    """A short query over one table: what a small model can begin with."""
    query = task["query"].upper()
    return len(query) < 80 and "JOIN" not in query and query.count("SELECT") == 1


def _tasks() -> list[dict[str, Any]]:
    questions = _rows("spider_questions.jsonl")
    schemas = {schema["db_id"]: schema for schema in _rows("spider_schemas.jsonl")}
    folder = Path(os.environ.get("SPIDER_DATABASES", "var/spider")).absolute()
    files = {
        name: make(folder, schema, [row["query"] for row in questions if row["db_id"] == name])
        for name, schema in schemas.items()
    }
    return [
        row | {"id": str(number), "database": str(files[row["db_id"]]), "schema": outline(schemas[row["db_id"]])}
        for number, row in enumerate(questions)
    ]


def _rows(name: str) -> list[dict[str, Any]]:
    file = Path(os.environ.get("LIGHTNING_DATA", ".")) / name
    if not file.is_file():
        raise FileNotFoundError(f"{file}: set LIGHTNING_DATA to the folder that holds it (examples/spider/README.md)")
    return [json.loads(line) for line in file.read_text().splitlines() if line]
