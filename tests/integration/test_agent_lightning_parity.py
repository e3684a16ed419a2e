"""Our SQL beside Agent Lightning 0.3.0 itself, on the same spans. `make oracle-env` installs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.oracle import record
from tests.oracle.cases import READY, ask_oracle, ask_sql
from tests.oracle.compare import answers, assert_same, left_out
from tests.oracle.faults import FAULTS
from tests.oracle.well_formed import well_formed
from tests.unit.test_oracle_records import answers_to_faults as answers_to_faults  # the fixture

if not READY.exists():
    pytest.skip(
        "*** agentlightning==0.3.0 is not installed (make oracle-env): NOTHING IS COMPARED WITH IT ***",
        allow_module_level=True,
    )
ROLLOUTS = 400
FIRST = 1000  # past the seeds that are recorded


class Oracle:
    """Every question is asked in one process, whose imports take ten seconds."""

    def __init__(self) -> None:
        self.rollouts = [well_formed(FIRST + number) for number in range(ROLLOUTS)]
        recorded = record.recorded_cases()
        answers = ask_oracle(self.rollouts + [case for cases in recorded.values() for case in cases.values()])
        self.to_rollouts, self.to_recorded = answers[:ROLLOUTS], answers[ROLLOUTS:]
        self.to_faults = dict(zip(recorded["faults"], self.to_recorded, strict=False))


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


def test_well_formed_rollouts_give_the_same_triplets_agents_and_rewards(tmp_path: Path, oracle: Oracle) -> None:
    ours = ask_sql(tmp_path, oracle.rollouts)
    for case, theirs, answer in zip(oracle.rollouts, oracle.to_rollouts, ours, strict=True):
        assert_same(case, theirs, answer)


def test_the_random_rollouts_are_of_every_kind(oracle: Oracle) -> None:
    """Else that they agree would say little."""
    assert {(case.assign, case.reward_match) for case in oracle.rollouts} == {
        ("final", "first_occurrence"),
        ("nearest", "first_occurrence"),
        ("nearest", "first_sibling"),
    }
    assert {case.agent_match for case in oracle.rollouts} == {"", "executor", "^plan", "planner|critic"}
    triplets = [len(answer["triplets"]) for answer in oracle.to_rollouts]
    assert sum(triplets) > 2 * ROLLOUTS and max(triplets) > 10 and min(triplets) == 0
    calls = [row for case in oracle.rollouts for row in case.attempt.rows if row["op"] == "llm"]
    assert min(sum((row["parent_span_id"] is None) is lost for row in calls) for lost in (True, False)) > ROLLOUTS / 2
    rewards = [triplet["reward"] for answer in oracle.to_rollouts for triplet in answer["triplets"]]
    assert len({reward for reward in rewards if reward is not None}) > 8


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_oracle_has_the_documented_better_answer(
    answers_to_faults: dict[str, dict[str, Any]], name: str, oracle: Oracle
) -> None:
    """Each is described where it is made: tests/oracle/faults.py."""
    fault, theirs, ours = FAULTS[name](), oracle.to_faults[name], answers_to_faults[name]
    assert (answers(theirs), theirs.get("error")) == (fault.oracle, fault.raises)
    assert (answers(ours), left_out(ours)) == (fault.ours, fault.left_out)


def test_the_recorded_answers_are_current(oracle: Oracle) -> None:
    for file, text in record.texts(oracle.to_recorded).items():
        assert record.path(file).read_text() == text, f"{file}.json: python -m tests.oracle.record"
