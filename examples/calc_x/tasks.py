"""Word problems by path: the folder `$LIGHTNING_DATA` holds Calc-X's one-step part and GSM8K, its largest.

| function | file | the same from the hub |
|---|---|---|
| `word_problems`, `word_problems_heldout` | calc_word_problems.jsonl | MU-NLPC/Calc-X, its one-step sets |
| `gsm8k`, `gsm8k_heldout` | gsm8k_train.jsonl | openai/gsm8k |
| `steps`, `steps_heldout` | both: all one-step problems, and of GSM8K what takes several; 300 of the latter are held out | |
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

STEPS_HELD_OUT = 300


def word_problems() -> list[dict[str, Any]]:
    return [task for task in _word_problems() if not _held_out(task, fifths=2)]


def word_problems_heldout() -> list[dict[str, Any]]:
    return [task for task in _word_problems() if _held_out(task, fifths=2)]


def gsm8k() -> list[dict[str, Any]]:
    return [task for task in _gsm8k() if not _held_out(task)]


def gsm8k_heldout() -> list[dict[str, Any]]:
    return [task for task in _gsm8k() if _held_out(task)]


def steps() -> list[dict[str, Any]]:
    return [*_word_problems(), *_several_steps()[STEPS_HELD_OUT:]]


def steps_heldout() -> list[dict[str, Any]]:
    return _several_steps()[:STEPS_HELD_OUT]


def _several_steps() -> list[dict[str, Any]]:
    """GSM8K's problems of two calculations or more, in the order of a hash: the same are held out on every machine."""
    rows = [row | {"steps": row["answer"].count("<<")} for row in _rows("gsm8k_train.jsonl")]
    tasks = [_gsm8k_task(row) | {"steps": row["steps"]} for row in rows if row["steps"] > 1]
    return sorted(tasks, key=lambda task: task["id"])


def _word_problems() -> list[dict[str, Any]]:
    """With the gold `expression`, which the agent does not get."""
    rows = _rows("calc_word_problems.jsonl")
    return [_task(row["prompt"], row["result"]) | {"expression": row["chain"][0]["inputs"]} for row in rows]


def _gsm8k() -> list[dict[str, Any]]:
    return [_gsm8k_task(row) for row in _rows("gsm8k_train.jsonl")]


def _gsm8k_task(row: dict[str, Any]) -> dict[str, Any]:
    return _task(row["question"], row["answer"].rpartition("####")[2])


def _rows(name: str) -> list[dict[str, Any]]:
    folder = os.environ.get("LIGHTNING_DATA")
    file = Path(folder or ".") / name
    if not file.is_file():
        raise FileNotFoundError(f"{file}: set LIGHTNING_DATA to the folder that holds it (examples/calc_x/README.md)")
    return [json.loads(line) for line in file.read_text().splitlines() if line]


def _task(question: str, answer: str) -> dict[str, Any]:
    # The name is the question's, so that it is held out on every machine or on none.
    name = hashlib.sha256(question.encode()).hexdigest()[:12]
    return {"id": name, "question": question, "answer": answer.strip().replace(",", "")}


def _held_out(task: dict[str, Any], fifths: int = 1) -> bool:
    return int(task["id"], 16) % 5 < fifths
