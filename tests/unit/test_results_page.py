"""bench/RESULTS.md says what bench/results/figures.jsonl says, the newest of each figure first."""

from __future__ import annotations

import json
from typing import Any

from bench.results_page import PAGE, RESULTS, newest, page


def test_the_page_is_that_of_the_figures() -> None:
    assert PAGE.read_text() == page(), "make results"


def test_every_figure_is_on_the_page_with_all_that_was_said_of_it() -> None:
    for row in map(json.loads, RESULTS.read_text().splitlines()):
        assert {"date", "machine", "command", "said"} == row.keys()
        for said in row["said"]:
            assert (said if isinstance(said, str) else said["name"]) in page()


def test_the_newest_figure_is_shown_and_of_several_that_of_the_most() -> None:
    def row(date: str, value: float, n: int) -> dict[str, Any]:
        return {"date": date, "said": ["before ", {"name": "x", "value": value, "n": n}]}

    found = newest(
        [row("2026-01-02", 1.0, 5), row("2026-01-03", 2.0, 1), row("2026-01-03", 3.0, 2), row("2026-01-01", 4.0, 9)]
    )
    assert found["x"][0]["value"] == 3.0
