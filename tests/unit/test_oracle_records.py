"""Our SQL beside what Agent Lightning 0.3.0 was recorded to answer to the same spans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import record
from tests.oracle.cases import ask_sql
from tests.oracle.compare import answers, assert_same, left_out
from tests.oracle.faults import FAULTS

pytestmark = pytest.mark.slow  # many rollouts


def test_well_formed_rollouts_give_the_same_triplets_agents_and_rewards(tmp_path: Path) -> None:
    cases = record.recorded_cases()["well_formed"]
    oracle = record.read("well_formed")
    ours = ask_sql(tmp_path, list(cases.values()))
    for (name, case), answer in zip(cases.items(), ours, strict=True):
        assert_same(case, oracle[name], answer)


@pytest.fixture(scope="module")
def answers_to_faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    cases = [make().case for make in FAULTS.values()]
    assert len({case.rollout_id for case in cases}) == len(cases)
    return dict(zip(FAULTS, ask_sql(tmp_path_factory.mktemp("faults"), cases), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_oracle_has_the_documented_better_answer(
    answers_to_faults: dict[str, dict[str, Any]], name: str
) -> None:
    """Each is described where it is made: tests/oracle/faults.py."""
    fault, ours = FAULTS[name](), answers_to_faults[name]
    recorded = record.read("faults")[name]
    assert (answers(recorded), recorded.get("error")) == (fault.oracle, fault.raises)
    assert (answers(ours), left_out(ours)) == (fault.ours, fault.left_out)
    assert answers(ours) != fault.oracle


def test_the_oracle_answers_by_the_order_of_its_input_and_the_sql_does_not(tmp_path: Path) -> None:
    cases = record.recorded_cases()["shuffles"]
    recorded = {json.dumps(answer["triplets"]) for answer in record.read("shuffles").values()}
    assert len(recorded) > 1
    ours = ask_sql(tmp_path, list(cases.values()))
    assert {json.dumps([answer["triplets"], answer["left_out"]]) for answer in ours} == {
        json.dumps([ours[0]["triplets"], {}])
    }
    assert answers(ours[0]) == [
        (10, "planner", 1.0),
        (11, "planner", 1.0),
        (12, "executor", 1.0),
        (13, "executor", 1.0),
    ]
