"""Rewards by `reward.grader`: a bad one is named and costs no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lightning_core import names
from lightning_core.agents.grading import grade
from lightning_core.client import SpanData
from lightning_core.config import SettingsError
from lightning_core.epoch.derive import attempts
from lightning_core.epoch.epoch import Epoch
from lightning_core.loading import code_digest
from tests.lake_maker import Attempt, derived, settings

pytestmark = pytest.mark.slow  # it starts graders

Posted = Callable[[str], tuple[dict[str, list[SpanData]], Any]]  # grader → (spans by rollout, grades)

GRADERS = """
def right(task, output, spans):
    return 1.0 if output == task["answer"] else 0.0
def by_spans(task, output, spans):
    return float(len([s for s in spans if s["op"] == "llm"]))
def several(task, output, spans):
    return {"reward": 0.5, "style": 0.25}
def in_words(task, output, spans):
    return {"reward": 0.5, "style": 0.25, "words": "a start"}
def no_reward(task, output, spans):
    return {"style": 0.25}
def nan(task, output, spans):
    return float("nan")
def text(task, output, spans):
    return "1.0"
def raises_once(task, output, spans):
    return 1 / task["number"]
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """Three attempts that ended and one that failed, as graders see them."""
    rows = []
    for number in range(3):
        attempt = Attempt(f"r.{number}", f"a{number}")
        attempt.root(task=json.dumps({"answer": "7", "number": number}), output=json.dumps(str(5 + number)))
        attempt.call([1], [2])
        rows += attempt.rows
    failed = Attempt("r.9", "a9")
    failed.root("error", task="{}", output=None)
    lake, epoch = derived(tmp_path_factory.mktemp("home"), rows + failed.rows)
    with attempts(Epoch(settings(lake.root.parent), epoch)) as con:
        yield con


@pytest.fixture
def posted(tmp_path: Path, recorded: duckdb.DuckDBPyConnection) -> Posted:
    def post(grader: str) -> tuple[dict[str, list[SpanData]], Any]:
        (tmp_path / "graders.py").write_text(GRADERS)
        sent: dict[str, list[SpanData]] = {}
        reference = grader if grader.endswith(".sql") else f"{tmp_path / 'graders.py'}:{grader}"
        grades = grade(reference, recorded, lambda rewards: sent.update({r: spans for r, _, spans in rewards}))
        return sent, grades

    return post


def test_the_grader_sees_task_output_and_spans_of_attempts_that_ran_to_their_end(posted: Posted) -> None:
    sent, grades = posted("right")
    assert {r: spans[0].attributes[names.REWARD] for r, spans in sent.items()} == {"r.0": 0.0, "r.1": 0.0, "r.2": 1.0}
    assert (grades.graded, grades.invalid) == (3, 0)
    assert all(s.attributes[names.REWARD_SOURCE] == "grader" for spans in sent.values() for s in spans)
    assert posted("by_spans")[0]["r.0"][0].attributes[names.REWARD] == 1.0


def test_a_dict_gives_several_named_rewards(posted: Posted) -> None:
    sent, _ = posted("several")
    found = {s.attributes[names.REWARD_NAME]: s.attributes[names.REWARD] for s in sent["r.0"]}
    assert found == {"reward": 0.5, "style": 0.25}


def test_a_dict_may_say_why_in_words(posted: Posted) -> None:
    sent, grades = posted("in_words")
    found = {s.attributes[names.REWARD_NAME]: s.attributes.get(names.REWARD_WORDS) for s in sent["r.0"]}
    assert (found, grades.invalid) == ({"reward": "a start", "style": None}, 0)


@pytest.mark.parametrize(
    ("grader", "reason"),
    [
        ("nan", "nan, not a finite number"),
        ("text", "'1.0', not a finite number"),
        ("no_reward", "no key 'reward', only style"),
    ],
)
def test_what_is_no_reward_is_an_error_of_its_rollout(posted: Posted, grader: str, reason: str) -> None:
    sent, grades = posted(grader)
    assert grades.invalid == 3 and reason in grades.first_error and "r.0" in grades.first_error
    assert all(names.REWARD not in spans[0].attributes and spans[0].attributes[names.ERROR] for spans in sent.values())


def test_a_grader_that_raises_for_one_rollout_grades_the_others(posted: Posted) -> None:
    sent, grades = posted("raises_once")
    assert (grades.graded, grades.invalid) == (3, 1)
    assert "ZeroDivisionError" in sent["r.0"][0].attributes[names.ERROR]
    assert sent["r.2"][0].attributes[names.REWARD] == 0.5


def test_a_sql_file_grades_too(posted: Posted, tmp_path: Path) -> None:
    file = tmp_path / "grade.sql"
    file.write_text(
        "SELECT rollout_id, attempt_id, count(*) FILTER (op = 'llm')::DOUBLE AS reward FROM epoch_spans GROUP BY ALL"
    )
    sent, _ = posted(str(file))
    assert sent["r.0"][0].attributes[names.REWARD] == 1.0


def test_a_sql_file_with_other_columns_is_named(posted: Posted, tmp_path: Path) -> None:
    file = tmp_path / "grade.sql"
    file.write_text("SELECT rollout_id FROM scored_attempts")
    with pytest.raises(SettingsError, match=r"grade\.sql: no column attempt_id, reward"):
        posted(str(file))


def test_an_attempt_is_graded_once_by_each_grader(tmp_path: Path) -> None:
    (tmp_path / "graders.py").write_text(GRADERS)
    reference = f"{tmp_path / 'graders.py'}:right"
    attempt = Attempt("r.0", "a0")
    attempt.root(task=json.dumps({"answer": "7"}), output=json.dumps("7"))
    attempt.reward(1.0, attributes=[("lightning.reward.grader", code_digest(reference))])
    lake, epoch = derived(tmp_path, attempt.rows)
    with attempts(Epoch(settings(lake.root.parent), epoch)) as con:
        assert grade(reference, con, lambda *_: None).graded == 0
        assert grade(f"{tmp_path / 'graders.py'}:several", con, lambda *_: None).graded == 1
        (tmp_path / "graders.py").write_text(GRADERS + "# changed\n")
        assert grade(reference, con, lambda *_: None).graded == 1
