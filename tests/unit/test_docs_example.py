"""The worked example of docs/hierarchy.md is what the commands in it print."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_core.lake import catalog
from lightning_core.lake.decode import Decoder
from lightning_core.lake.explain import explain
from lightning_core.lake.explain_view import view
from lightning_core.lake.lake import Lake
from tests.frameworks import dump
from tests.lake_maker import Attempt, derived

PAGE = (Path(__file__).parents[2] / "docs" / "hierarchy.md").read_text().split("## An example")[1]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The rollouts of AutoGen, each rewarded under its root."""
    decoded, _ = Decoder().decode([(place, place + 1, record) for place, record in enumerate(dump.load("autogen"))])
    rows: list[dict[str, Any]] = decoded.to_pylist()
    for root in [row for row in rows if row["op"] == "rollout"]:
        given = Attempt(root["rollout_id"], root["attempt_id"])
        given.reward(1.0, parent=root["span_id"], start_ns=root["end_ns"], end_ns=root["end_ns"])
        rows += given.rows
    lake, _ = derived(tmp_path_factory.mktemp("lake"), rows, advantages="reinforce")
    lake.rebuild_catalog()
    return lake


def test_explain_prints_the_trees_lines_in_their_order(lake: Lake) -> None:
    printed = io.StringIO()
    Console(file=printed, width=200).print(view(explain(lake.root, "autogen.parallel")))
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    block = re.findall(r"```\n(\$ lightning-flows explain autogen\.parallel\n.*?)```", PAGE, re.DOTALL)[0]
    shown = [line for line in block.splitlines()[1:] if line != "…"]
    place = 0
    for line in shown:
        place = lines.index(line, place) + 1
    assert len(shown) > 5


def test_every_question_has_the_answer_that_is_given(lake: Lake) -> None:
    asked = 0
    with catalog.connect(lake.root) as con:
        for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL):
            for question, answer in re.findall(r"(SELECT.*?;)\n-- ([^\n]*)", block, re.DOTALL):
                rows = con.sql(question).fetchall()
                found = [" ".join("NULL" if value is None else str(value) for value in row) for row in rows]
                assert " | ".join(found) == answer
                asked += 1
    assert asked == 3
