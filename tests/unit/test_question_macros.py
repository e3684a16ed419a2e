"""The questions of sql/analysis as macros of the catalog: parameters, inside other queries, from another folder, in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from lightning_core.lake import ask, catalog, sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from lightning_flows.flows.cli import main
from tests import analysis_lake
from tests.analysis_lake import rollout
from tests.lake_maker import derived

pytestmark = pytest.mark.slow  # many lakes, and processes that run what is printed

# What each parameter is given, where the answer without it is another one.
GIVEN = {
    "p_run": "'other'",
    "p_epoch": "0",
    "p_since": "1",
    "p_before": "1",
    "p_after": "0",
    "p_verdict": "'always'",
}
# Where another value is needed, or where nothing is left: the lake has evaluations 0 and 1, and left calls out of epoch 0.
NONE_LEFT = {("held_out_gains", "p_since"): "1", ("held_out_gains", "p_epoch"): "0", ("left_out_calls", "p_epoch"): "1"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return analysis_lake.make(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("name", ask.questions())
def test_every_parameter_changes_the_rows(lake: Lake, name: str) -> None:
    with catalog.connect(lake.root) as con:
        all_rows = con.sql(f"FROM {name}()").fetchall()
        for parameter in sql.parameters(f"analysis/{name}"):
            none_left = NONE_LEFT.get((name, parameter))
            given = none_left or GIVEN[parameter]
            answer = con.sql(f"FROM {name}({parameter} := {given})")
            rows, column = answer.fetchall(), parameter.removeprefix("p_")
            assert rows != all_rows, f"{parameter} := {given}: a parameter with the name of a column matches every row"
            assert bool(rows) == (none_left is None), parameter
            if column in answer.columns and name != "epoch_changes":
                assert {str(row[answer.columns.index(column)]) for row in rows} <= {given.strip("'")}


@pytest.mark.parametrize("name", ask.questions())
def test_the_header_names_the_parameters_that_the_sql_uses(name: str) -> None:
    lines = sql.text(f"analysis/{name}").splitlines()
    header = "\n".join(line for line in lines if line.startswith("--"))
    body = "\n".join(line for line in lines if not line.startswith("--"))
    assert "Parameters: p_run" in header and "default" in header
    assert all(parameter in header and parameter in body for parameter in sql.parameters(f"analysis/{name}"))


def test_a_question_stands_inside_a_query(lake: Lake) -> None:
    query = "SELECT task_id, count(*) AS n FROM task_changes() JOIN rollouts USING (run, task_id) GROUP BY ALL"
    with catalog.connect(lake.root) as con:
        assert con.sql(query).fetchall() == [("held", 2)]
        assert con.execute("SELECT count(*) FROM epoch_report(p_run := $run)", {"run": "run"}).fetchall() == [(3,)]


def test_the_command_takes_parameters_with_the_name(lake: Lake) -> None:
    def asked(question: str) -> list[str]:
        done = CliRunner().invoke(main, ["sql", question, "--home", str(lake.root.parent), "--format", "csv"])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()[1:]

    assert len(asked("epoch_report")) == 6
    assert len(asked("epoch_report(p_run := 'other')")) == 3
    assert len(asked("epoch_report(p_run := 'other', p_epoch := 1);")) == 1
    assert asked("SELECT count(*) FROM epoch_report()") == ["6"]


def test_a_question_asked_wrongly_is_one_line_that_helps(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"epoch_report is a question, which takes parentheses: FROM epoch_report\(\)"):
        ask.answer(lake.root, "FROM epoch_report JOIN epochs USING (run)")
    with pytest.raises(LakeError, match=r"epoch_report\(p_run := NULL, p_epoch := NULL\)"):
        ask.answer(lake.root, "epoch_report(run := 'other')")


def test_a_catalog_that_knows_no_questions_says_what_renews_it(lake: Lake, tmp_path: Path) -> None:
    old = Lake(tmp_path)
    old.rebuild_catalog()
    with duckdb.connect(str(old.root / "catalog.duckdb")) as con:
        for name in ask.questions():
            con.execute(f"DROP MACRO TABLE {name}")
    for ask_it in (ask.overview, lambda root: ask.answer(root, "late_and_rejected")):
        with pytest.raises(LakeError, match=r"another version's .*`lightning-flows ingest` renews it"):
            ask_it(old.root)
    CliRunner().invoke(main, ["ingest", "--home", str(tmp_path)], catch_exceptions=False)
    assert ask.answer(old.root, "late_and_rejected").endswith("(0 rows)")


def test_a_changed_question_can_be_asked_as_shown(lake: Lake) -> None:
    shown = ask.show("failing_tools")
    assert [json.loads(line)["calls"] for line in ask.lines(lake.root, shown, "json")] == [6]
    changed = shown.replace("count(*) AS calls", "count(*) + 100 AS calls")
    assert [json.loads(line)["calls"] for line in ask.lines(lake.root, changed, "json")] == [106]
    of_nobody = shown.replace("NULL /* p_run */", "'nobody'")
    assert of_nobody != shown and list(ask.lines(lake.root, of_nobody, "json")) == []


def test_what_json_does_not_have_is_null_or_text_in_it_however_deep(lake: Lake) -> None:
    query = "SELECT 'nan'::FLOAT AS n, [1, 'inf'::FLOAT] AS l, {'a': ['nan'::DOUBLE]} AS s, map([DATE '2026-01-02'], [3]) AS m"
    (line,) = ask.lines(lake.root, query, "json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(line, parse_constant=refuse) == {
        "n": None,
        "l": [1.0, None],
        "s": {"a": [None]},
        "m": {"2026-01-02": 3},
    }


@pytest.mark.parametrize("question", [None, "epoch_report(p_run := 'run')", "SELECT 'it''s \"run\"' AS run"])
def test_the_python_that_is_printed_runs_as_it_is_in_any_folder(
    tmp_path: Path, question: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "it's a home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    derived(home, rollout(0, 1.0).rows)[0].rebuild_catalog()
    monkeypatch.chdir(tmp_path)
    printed = CliRunner().invoke(main, ["sql", "--python", "--home", home.name, *([question] if question else [])])
    assert printed.exit_code == 0, printed.output
    ran = subprocess.run(
        [sys.executable, "-I", "-c", printed.output], cwd=elsewhere, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("run") >= 6, "shown, as polars and as pandas: the column and its value"


def test_lines_of_python_are_not_printed_where_there_is_no_catalog(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no catalog yet"):
        ask.python(tmp_path / "lake")


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Four evaluations of tasks that were learned, forgotten, …; two training epochs of three tasks."""
    rewards: dict[str, tuple[float, ...]] = {
        "learned early": (0, 1, 1, 1),
        "learned late": (0, 1, 0, 1),
        "forgotten": (1, 1, 0, 0),
        "lost again": (0, 0, 1, 0),
        "recovered": (1, 0, 1, 1),
        "better": (0, 0, 0, 0.5),
        "always": (1, 1, 1, 1),
        "never": (0, 0, 0, 0),
    }
    rows, number = [], 0
    for task, results in rewards.items():
        asked = json.dumps({"id": task, "question": f"What of {task}?"})
        for epoch, reward in enumerate(results):
            number += 1
            rows += rollout(number, reward, epoch, "evaluate", 0, task, task=asked, output=f"{reward}").rows
    trained: dict[tuple[int, str], tuple[float, ...]] = {
        (0, "hard"): (0, 0), (0, "easy"): (1, 0), (0, "odd"): (0, 0.5), (1, "hard"): (0, 1), (1, "easy"): (1, 1),
    }  # fmt: skip
    for (epoch, task), results in trained.items():
        for reward in results:
            number += 1
            rows += rollout(number, reward, epoch, "train", 0, task, task=task.upper()).rows
    lake, _ = derived(tmp_path_factory.mktemp("pupil"), rows)
    analysis_lake.derive_epochs(lake, [("run", epoch, "evaluate") for epoch in range(4)])
    analysis_lake.derive_epochs(lake, [("run", epoch, "train") for epoch in range(2)])
    lake.rebuild_catalog()
    return lake


def test_task_changes_says_what_was_learned_and_forgotten_and_when(pupil: Lake) -> None:
    with catalog.connect(pupil.root) as con:
        rows = con.sql(
            "SELECT task_id, became, since, first, best, last, by_epoch, task FROM task_changes()"
        ).fetchall()
        assert con.sql("SELECT output_first, output_last FROM task_changes() LIMIT 1").fetchall() == [("1", "0")]
    expected: list[tuple[Any, ...]] = [
        ("forgotten", "forgotten", 2, 1, 1, 0, [1, 1, 0, 0]),
        ("lost again", "lost again", 3, 0, 1, 0, [0, 0, 1, 0]),
        ("recovered", "recovered", 2, 1, 1, 1, [1, 0, 1, 1]),
        ("learned early", "learned", 1, 0, 1, 1, [0, 1, 1, 1]),
        ("learned late", "learned", 3, 0, 1, 1, [0, 1, 0, 1]),
        ("better", "better", None, 0, 0, 0, [0, 0, 0, 0]),
    ]
    assert rows == [(*row, f"What of {row[0]}?") for row in expected]


def test_unsolved_tasks_begins_with_the_newest_that_are_not_solved(pupil: Lake) -> None:
    columns = "epoch, task_id, verdict, right_ones, rollouts, spread, epochs, right_ones_in_all, task"
    with catalog.connect(pupil.root) as con:
        rows = con.sql(f"SELECT {columns} FROM unsolved_tasks()").fetchall()
        solved = con.sql(f"SELECT {columns} FROM unsolved_tasks(p_verdict := 'always')").fetchall()
        first = con.sql("SELECT task_id, verdict FROM unsolved_tasks(p_epoch := 0)").fetchall()
    assert rows == [(1, "hard", "sometimes", 1, 2, 1, 2, 1, "HARD"), (0, "odd", "never", 0, 2, 0.5, 1, 0, "ODD")]
    assert solved == [(1, "easy", "always", 2, 2, 0, 2, 3, "EASY")]
    assert first == [("hard", "never"), ("odd", "never"), ("easy", "sometimes")]


def test_a_tasks_text_is_what_it_asks(tmp_path: Path) -> None:
    texts = {
        '{"id": "1", "answer": "a longer text than the question", "question": "Why?"}': "Why?",
        '{"prompt": {"a": 1}, "n": 2}': '{"a":1}',
        '{"question": null, "n": 2}': '{"question":null,"n":2}',
        '"a text"': "a text",
        "What is {2}?": "What is {2}?",
        "17": "17",
    }
    rows = [row for number, task in enumerate(texts) for row in rollout(number, 1.0, task=task).rows]
    lake, _ = derived(tmp_path, [*rows, *rollout(9, 1.0).rows])
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        found = con.sql("SELECT task, task_text FROM rollouts ORDER BY rollout_id").fetchall()
    assert found == [*texts.items(), (None, None)]
