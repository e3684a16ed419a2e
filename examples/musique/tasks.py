"""Multi-hop questions by path: `$LIGHTNING_DATA` holds musique_questions.jsonl and musique_corpus.json. A fifth is held out."""

import json
import os
from pathlib import Path
from typing import Any


def train() -> list[dict[str, Any]]:
    return [task for place, task in enumerate(_tasks()) if place % 5]


def heldout() -> list[dict[str, Any]]:
    return [task for place, task in enumerate(_tasks()) if place % 5 == 0]


def _tasks() -> list[dict[str, Any]]:
    file = Path(os.environ.get("LIGHTNING_DATA", ".")) / "musique_questions.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: set LIGHTNING_DATA to the folder that holds it (examples/musique/README.md)")
    kept = ("id", "question", "answer", "answer_aliases")
    return [{key: row[key] for key in kept} for row in map(json.loads, file.read_text().splitlines())]
