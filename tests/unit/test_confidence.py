"""The confidence of each method of sql/hierarchy/methods.sql is what was measured, and what is derived is no less right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import duckdb
import pytest

from bench.evidence import RUNS
from bench.results_page import RESULTS, newest
from lightning_core.lake import sql
from tests.agent_truth import attempts, judged

_TOLERANCE = 0.05
_ENOUGH = 100  # calls of a row: of fewer the interval is too wide to say anything


def confidences() -> dict[str, float]:
    with duckdb.connect() as con:
        rows = con.execute(f"SELECT method, confidence::DOUBLE FROM ({sql.text('hierarchy/methods')})").fetchall()
    return dict(rows)


def lower_bound(right: int, wrong: int) -> float:
    """Of the 95% interval of a share (Wilson)."""
    n, z = right + wrong, 1.96
    share = right / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (share + z * z / (2 * n) - half) / (1 + z * z / n)


def test_a_confidence_is_the_lower_bound_of_the_worst_row_that_was_measured() -> None:
    figures = newest([json.loads(line) for line in RESULTS.read_text().splitlines()])
    placed = [figure["placed"] for name, (figure, _) in figures.items() if name.startswith("evidence_")]
    assert len(placed) >= len(RUNS)
    stated = confidences()
    measured: dict[str, float] = {}
    for row in placed:
        for method, (right, wrong) in row.items():
            if right + wrong >= _ENOUGH:
                measured[method] = min(measured.get(method, 1.0), lower_bound(right, wrong))
    assert measured.keys() >= {"content", "declared", "own_identity", "same_name", "time", "tool_call", "twin"}
    far = {method: (stated[method], low) for method, low in measured.items() if abs(stated[method] - low) > _TOLERANCE}
    assert far == {}
    assert all(stated[method] < min(measured.values()) for method in ("link", "missing_parent", "unplaced", "cycle"))


@pytest.mark.slow  # two of the worst rows
@pytest.mark.parametrize("name", ["evidence_partly", "evidence_uninstrumented"])
def test_what_is_derived_is_as_right_as_its_confidence_says(tmp_path: Path, name: str) -> None:
    found = judged(tmp_path, *attempts(2000, *RUNS[name]))
    shares = {m: right / (right + wrong) for m, (right, wrong) in found.by_method.items() if right + wrong >= _ENOUGH}
    assert {"content", "time", "tool_call"} <= shares.keys()
    stated = confidences()
    assert {m: (stated[m], share) for m, share in shares.items() if share < stated[m] - _TOLERANCE} == {}
