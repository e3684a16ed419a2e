"""Multi-hop questions by path: `$LIGHTNING_DATA` holds musique_questions.jsonl and musique_corpus.json. Two fifths are held out."""

import json
import os
import re
from pathlib import Path
from typing import Any


def train() -> list[dict[str, Any]]:
    return [task for place, task in enumerate(_tasks()) if place % 5 > 1]


def heldout() -> list[dict[str, Any]]:
    return [task for place, task in enumerate(_tasks()) if place % 5 <= 1]


def _tasks() -> list[dict[str, Any]]:
    file = Path(os.environ.get("LIGHTNING_DATA", ".")) / "musique_questions.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: set LIGHTNING_DATA to the folder that holds it (examples/musique/README.md)")
    kept = ("id", "question", "answer", "answer_aliases")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: row[key] for key in kept} | {"hops": hops(row.get("question_decomposition", []))} for row in rows]


def hops(steps: list[dict[str, Any]]) -> list[str]:
    """The questions of the hops, with the answers of earlier ones where they say #1, #2, …; the agent does not get them."""
    answers = {f"#{number}": step["answer"] for number, step in enumerate(steps, 1)}
    return [re.sub(r"#\d", lambda found: answers.get(found[0], found[0]), step["question"]) for step in steps]
