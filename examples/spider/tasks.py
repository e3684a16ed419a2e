"""Questions over databases, by path: `$LIGHTNING_DATA` holds spider_questions.jsonl and spider_schemas.jsonl.

Databases are made from the schemas in `$SPIDER_DATABASES` (default: var/spider). Where that folder holds real ones, named
<db_id>.sqlite, they are taken. Held out are whole databases: a query for one that was trained on is half known. The small
run, whose model does not get to copying names it never saw, holds out queries instead, with all questions that ask for them.
The runs of folds.yaml hold out each database once, in three folds: `$SPIDER_FOLD` is 0, 1 or 2.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from databases import make, outline

HELD_OUT = ("concert_singer", "voter_1", "battle_death", "real_estate_properties", "tvshow", "network_1")
# The fifteen databases, those with the most questions first: a fold holds out every third.
BY_SIZE = (
    "world_1", "car_1", "cre_Doc_Template_Mgt", "dog_kennels", "flight_2", "student_transcripts_tracking", "tvshow", "network_1",
    "concert_singer", "employee_hire_evaluation", "course_teach", "singer", "battle_death", "voter_1", "real_estate_properties",
)  # fmt: skip
FOLDS = 3
HELD_OUT_OF_EACH = 18  # questions of a database, at most


def train() -> list[dict[str, Any]]:
    return [task for task in _tasks() if task["db_id"] not in HELD_OUT]


def heldout() -> list[dict[str, Any]]:
    return [task for task in _tasks() if task["db_id"] in HELD_OUT]


def fold_train() -> list[dict[str, Any]]:
    held_out = _held_out()
    return [task for task in _tasks() if task["db_id"] not in held_out]


def fold_heldout() -> list[dict[str, Any]]:
    """Of each database of the fold the same questions on every machine: the first by a hash."""
    held_out = _held_out()
    order = sorted(_tasks(), key=lambda task: hashlib.sha256(task["question"].encode()).digest())
    of_each = [[task for task in order if task["db_id"] == name] for name in held_out]
    return [task for tasks in of_each for task in tasks[:HELD_OUT_OF_EACH]]


def _held_out() -> tuple[str, ...]:
    fold = os.environ.get("SPIDER_FOLD", "")
    if fold not in ("0", "1", "2"):
        raise ValueError(f"SPIDER_FOLD={fold}: set it to 0, 1 or 2, the fold of databases that is held out")
    return BY_SIZE[int(fold) :: FOLDS]


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
