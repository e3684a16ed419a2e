"""Writes what Agent Lightning answers to tests/data/oracle, for tests that run without it.

make oracle-env && .venv/bin/python -m tests.oracle.record
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.oracle.cases import RECORDS, Case, ask_oracle
from tests.oracle.faults import FAULTS, shuffled
from tests.oracle.well_formed import well_formed

SHUFFLES = 200
RECORDED_ROLLOUTS = 40


def recorded_cases() -> dict[str, dict[str, Case]]:
    """File → name → case."""
    return {
        "faults": {name: fault().case for name, fault in FAULTS.items()},
        "shuffles": {str(number): shuffled(number) for number in range(SHUFFLES)},
        # Of two patterns only, since each is a derivation of its own.
        "well_formed": {
            str(seed): case
            for seed in range(2 * RECORDED_ROLLOUTS)
            if (case := well_formed(seed)).agent_match in ("", "executor")
        },
    }


def texts(answers: Iterable[dict[str, Any]]) -> dict[str, str]:
    """File → its text, of the answers to `recorded_cases` in their order."""
    answers = iter(answers)
    texts = {}
    for file, cases in recorded_cases().items():
        rows = [{"case": name, "question": case.digest()} | next(answers) for name, case in cases.items()]
        texts[file] = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    return texts


def path(file: str) -> Path:
    return RECORDS / f"{file}.json"


def read(file: str) -> dict[str, dict[str, Any]]:
    """Case → recorded answer; a question that has changed since is an error."""
    rows = {row["case"]: row for row in json.loads(path(file).read_text())}
    for name, case in recorded_cases()[file].items():
        if rows.get(name, {}).get("question") != case.digest():
            raise AssertionError(f"{file}.json has no answer to {name} as it is now: python -m tests.oracle.record")
    return rows


if __name__ == "__main__":
    RECORDS.mkdir(parents=True, exist_ok=True)
    asked = [case for cases in recorded_cases().values() for case in cases.values()]
    for file, text in texts(ask_oracle(asked)).items():
        path(file).write_text(text)
