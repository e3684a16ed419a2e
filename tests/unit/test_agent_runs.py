"""Random runs of agents: the same seed gives the same run, and what they declare is found as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent_runs import STYLES
from tests.agent_truth import NO_FAULTS, Row, Truth, attempts, judged

_DECLARING = {"pydantic_ai", "openai_agents", "langgraph"}


def test_the_same_seed_gives_the_same_runs() -> None:
    assert attempts(100, seed=3) == attempts(100, seed=3) != attempts(100, seed=4)


def test_a_framework_that_declares_every_call_leaves_no_doubt(tmp_path: Path) -> None:
    rows: list[Row] = []
    known: Truth = {}
    for number, style in enumerate(sorted(_DECLARING)):
        more, calls = attempts(60, seed=number, style=style)
        rows += [row | {"rollout_id": f"{style}.{row['rollout_id']}"} for row in more]
        known |= {(f"{style}.{rollout}", response_id): agent for (rollout, response_id), agent in calls.items()}
    found = judged(tmp_path, rows, known)
    assert (found.wrong, found.left_out, found.calls) == (0, 0, len(known))


@pytest.mark.parametrize("style", STYLES)
def test_every_call_is_recorded_by_the_gateway_once(style: str) -> None:
    rows, known = attempts(60, "own", NO_FAULTS, style=style)
    assert sorted(row["response_id"] for row in rows if row["policy"]) == sorted(response for _, response in known)
