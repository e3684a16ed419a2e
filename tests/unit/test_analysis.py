"""The questions of sql/analysis and `lightning-flows sql`: each runs, answers what it says, and is in the docs."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import re
import signal
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from docs import analysis_page
from lightning_core.lake import ask, catalog, sql, text_table
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from tests import analysis_lake

pytestmark = pytest.mark.slow  # many lakes


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return analysis_lake.make(tmp_path_factory.mktemp("home"))


def rows_of(lake: Lake, question: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask.lines(lake.root, question, "json")]


@pytest.mark.parametrize("name", ask.questions())
def test_each_question_is_answered_pasted_into_duckdb_in_the_lakes_folder(
    lake: Lake, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lake.root)
    with duckdb.connect("catalog.duckdb", read_only=True) as con:
        assert con.execute(ask.show(name)).fetchall(), f"{name}: this lake has something of everything"


def test_each_question_has_no_answer_and_no_error_before_the_first_epoch(tmp_path: Path) -> None:
    empty = Lake(tmp_path)
    empty.rebuild_catalog()
    with catalog.connect(empty.root) as con:
        for name in ask.questions():
            assert con.execute(f"FROM {name}()").fetchall() == [], name


def test_each_question_says_what_it_is_and_reads_only_what_the_catalog_has(lake: Lake) -> None:
    with catalog.connect(lake.root) as con:
        known = {
            row[0]
            for row in con.execute(
                "SELECT view_name FROM duckdb_views() UNION SELECT table_name FROM duckdb_tables()"
            ).fetchall()
        }
    for name in ask.questions():
        header = " ".join(line for line in sql.text(f"analysis/{name}").splitlines() if line.startswith("--"))
        assert "Grain:" in header, name
        inputs = re.search(r"Inputs: ([\w, -]+)", header)
        assert inputs, name
        declared = set(re.findall(r"\w+", inputs.group(1).removesuffix("Parameters")))
        assert declared <= known, (name, declared - known)
        text = sql.text(f"analysis/{name}")
        read = set(re.findall(r"(?:FROM|JOIN) (\w+)", text)) - set(re.findall(r"(\w+) AS \(", text))
        assert read & known == declared, (name, read, declared)


def test_every_question_is_in_the_docs() -> None:
    page = (Path(analysis_page.__file__).parent / "analysis.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.M) == ask.questions(), (
        "run: python -m docs.generate analysis --home var/demo"
    )


def test_the_page_is_written_from_a_lake(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lake.root.parent.parent)
    page = analysis_page.analysis_page(Path(lake.root.parent.name))
    assert "`run`, 2 epochs and 2 evaluations" in page
    assert "no net" in page
    assert max(len(line) for line in page.splitlines() if not line.startswith("#")) <= 200


ANSWERS: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "failing_tools": ("tool_name, calls, failed, rollouts_hit, most_frequent_error", [("search", 6, 6, 3, "no net")]),
    "repeated_tool_calls": (
        "rollout_id, tool_name, times, reward",
        [("run.2", "search", 3, 0.0), ("run.5", "search", 2, 1.0)],
    ),
    "unsolved_tasks": ("task_id, verdict, rollouts", [("c", "sometimes", 2), ("b", "sometimes", 2)]),
    "held_out_gains": ("since, epoch, tasks, before, after, gained", [(0, 1, 1, 0.0, 1.0, 1.0)]),
    "task_changes": ("task_id, became, since, first, last", [("held", "learned", 1, 0.0, 1.0)]),
    "rollout_retries": (
        "epoch, state, message, attempts, then_counted",
        [(0, "infrastructure", "vLLM answered # after # s", 1, 1), (1, "unfinished", "", 1, 0)],
    ),
    "late_and_rejected": (
        "problem, what, spans, example",
        [("late", "other", 1, "run.4"), ("rejected", "no ids", 1, "run.1")],
    ),
    "reward_by_tool": (
        "epoch, rollouts_with, mean_reward_with, rollouts_without, mean_reward_without",
        [(0, 2, 0.5, 2, 1.0), (1, 1, 1.0, 1, 0.5)],
    ),
    "reward_by_agent": (
        "epoch, agent, rollouts_with, mean_reward_with, mean_reward_without",
        [
            (0, "coder", 2, 0.5, 1.0),
            (0, "planner", 4, 0.75, None),
            (1, "coder", 1, 1.0, 0.5),
            (1, "planner", 2, 0.75, None),
        ],
    ),
    "reward_by_calls": (
        "epoch, mode, calls, rollouts, mean_reward",
        [
            (0, "evaluate", "1", 1, 0.0),
            (0, "train", "1", 2, 1.0),
            (0, "train", "2", 2, 0.5),
            (1, "evaluate", "1", 1, 1.0),
            (1, "train", "1", 1, 0.5),
            (1, "train", "2", 1, 1.0),
        ],
    ),
    "left_out_calls": ("epoch, agent, reason, calls, share", [(0, "planner", "no_spread", 2, 2 / 6)]),
    "error_messages": ("op, message, times", [("tool", "no net", 6), ("rollout", "vLLM answered # after # s", 1)]),
    "staleness_and_drift": ("epoch, epoch_version, largest_lag", [(0, "v0000", 0), (1, "v0001", 1)]),
    "epoch_changes": (
        "measure, before, after FROM answer WHERE measure IN ('mean reward', 'tool calls', 'calls a rollout') --",
        [("mean reward", 0.75, 0.75), ("calls a rollout", 1.5, 1.5), ("tool calls", 4.0, 2.0)],
    ),
    "tokens_by_agent": (
        "epoch, agent, calls, response_tokens, share FROM answer WHERE mode = 'train' --",
        [(0, "coder", 2, 12, 0.6), (0, "planner", 4, 8, 0.4), (1, "coder", 1, 6, 0.6), (1, "planner", 2, 4, 0.4)],
    ),
    "cut_off_responses": (
        "agent, finish_reasons, calls, share FROM answer WHERE mode = 'train' AND epoch = 0 --",
        [("coder", '["length"]', 2, 1.0), ("planner", '["stop"]', 4, 1.0)],
    ),
    "slowest_rollouts": ("rollout_id, seconds FROM answer LIMIT 2 --", [("run.4", 5.0), ("run.5", 5.0)]),
    "longest_chains": ("rollout_id, depth, longest_path FROM answer LIMIT 1 --", [("run.2", 3, "planner/coder")]),
    "reward_sources": (
        "mode, source, reward_name, counted, mean FROM answer WHERE epoch = 0 --",
        [("evaluate", "grader", "reward", 1, 0.0), ("train", "grader", "reward", 4, 0.75)],
    ),
    "ambiguous_agents": ("epoch, method, calls, ambiguous", [(0, "declared", 7, 0), (1, "declared", 4, 0)]),
    "latency_by_hour": ("model, calls, failed", [("policy", 11, 0)]),
    "reward_by_length": (
        "epoch, shortest, rollouts, mean_reward FROM answer WHERE epoch = 1 --",
        [(1, 2, 1, 0.5), (1, 8, 1, 1.0)],
    ),
    "epoch_report": ("epoch, mean_reward, rollouts, calls", [(-1, None, None, None), (0, 0.75, 4, 6), (1, 0.75, 2, 3)]),
}


@pytest.mark.parametrize("name", ask.questions())
def test_answers_are_right(lake: Lake, name: str) -> None:
    columns, expected = ANSWERS[name]
    with catalog.connect(lake.root) as con:
        found = con.execute(f"WITH answer AS (FROM {name}(p_run := 'run')) SELECT {columns} FROM answer").fetchall()
    assert [tuple(row) for row in found] == [pytest.approx(row) if _numbers(row) else row for row in expected]


def _numbers(row: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int | float) for value in row)


def test_a_name_is_a_question_a_view_or_a_table(lake: Lake) -> None:
    assert rows_of(lake, "failing_tools")[0]["tool_name"] == "search"
    assert len(rows_of(lake, "rollouts;")) == 18
    assert len(rows_of(lake, "rejections")) == 2
    assert rows_of(lake, "SELECT count(*) AS n FROM epochs") == [{"n": 8}]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("failing_tool", "did you mean failing_tools"),
        ("rollout", "did you mean rollouts"),
        ("xyzzy", "`lightning-flows sql` lists them"),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT agnt FROM calls", 'Candidate bindings: "agent"'),
        ("FROM epochz", 'Did you mean "epochs"'),
        ("INSERT INTO rejections SELECT * FROM rejections", "it is INSERT, not a query"),
    ],
)
def test_what_cannot_be_asked_is_one_line_that_helps(lake: Lake, question: str, message: str) -> None:
    with pytest.raises(LakeError) as caught:
        ask.answer(lake.root, question)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sql_of_questions_views_and_steps_can_be_shown(lake: Lake) -> None:
    assert "-- Which tools fail" in ask.show("failing_tools")
    assert "FROM spans" in ask.show("calls")
    assert "-- Grain" in ask.show("span_tree")
    with pytest.raises(LakeError, match="did you mean epoch_report"):
        ask.show("epoch_reports")


def test_the_overview_lists_tables_questions_and_what_was_lost(lake: Lake) -> None:
    text = ask.overview(lake.root)
    for name in (*catalog.VIEWS, "spans", "span_tree", "epoch_changes(p_run, p_after, p_before)"):
        assert f"  {name} " in text
    for name in ask.questions():
        assert f"  {name}(p_run" in text
    assert "could not be decoded: 2 " in text
    assert "after their epoch was sealed: 2 " in text


def test_nothing_lost_is_not_mentioned(tmp_path: Path) -> None:
    Lake(tmp_path).rebuild_catalog()
    text = ask.overview(tmp_path / "lake")
    assert "decoded:" not in text
    assert "sealed:" not in text


def test_csv_and_json_have_all_rows_and_tables_fifty(lake: Lake) -> None:
    question = "SELECT range AS i, 'a\"b\nc,d' AS t, [1.5, NULL] AS l, 'nan'::DOUBLE AS x, now() AS at FROM range(3000)"
    read = list(csv.reader(io.StringIO(ask.answer(lake.root, question, "csv"))))
    assert (len(read), read[0], read[3000][:2]) == (3001, ["i", "t", "l", "x", "at"], ["2999", 'a"b\nc,d'])
    read_json = rows_of(lake, question)
    assert len(read_json) == 3000
    assert (read_json[7]["i"], read_json[7]["l"], read_json[7]["x"]) == (7, [1.5, None], None)
    table = ask.answer(lake.root, question).splitlines()
    assert len(table) == 2 + 50 + 1
    assert table[-1].startswith("(the first 50 rows")
    assert len(ask.answer(lake.root, question, "csv", limit=3).splitlines()) == 1 + 2 * 3
    assert ask.answer(lake.root, question, limit=1).splitlines()[-1].startswith("(the first 1 rows")
    assert ask.answer(lake.root, "SELECT 1 AS one").splitlines()[-1] == "(1 row)"


def test_ctrl_c_ends_a_query_at_once(lake: Lake) -> None:
    # Where the tests run in the background of a shell, SIGINT is ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask.answer(lake.root, "SELECT a.span_id, count(*) FROM spans a, spans b, range(1000000000) c GROUP BY 1")
    finally:
        timer.join()
        signal.signal(signal.SIGINT, former)


def test_long_text_is_cut_and_numbers_are_not() -> None:
    lines = text_table.render(["id", "text", "n"], [("x" * 30, "y" * 500, 123456789), ("z", None, None)], width=60)
    assert max(len(line) for line in lines) <= 60
    assert lines[2].endswith("123456789")
    assert "…" in lines[2]


def test_a_pipe_gets_whole_cells_and_the_same_lines_whatever_columns_says(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "SELECT repeat('y', 500) AS text, 123456789 AS n, '日本' AS wide"
    answers = set()
    for columns in ("20", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        answers.add(ask.answer(lake.root, question))
    (answer,) = answers
    assert answer.splitlines()[2].split() == ["y" * 500, "123456789", "日本"]
    (block,) = {len(line) for line in text_table.render(["a"] * 80, [["z" * 500] * 80], None) if "z" in line}
    assert block == 503, "and what becomes blocks is not cut either"


def test_names_of_columns_are_broken_before_rows_become_blocks() -> None:
    columns = [f"a_rather_long_name_{i}" for i in range(6)]
    table = text_table.render(columns, [tuple(range(6))], width=60)
    assert table[0].split() == ["a_"] * 6
    assert table[-1].split() == [str(i) for i in range(6)]
    blocks = text_table.render(columns, [tuple(range(6)), (None, "x" * 99, 2, 3, 4, 5)], width=30)
    assert [line for line in blocks if line.startswith("──")] == ["── 1 " + "─" * 25, "── 2 " + "─" * 25]
    assert "a_rather_long_name_5  5" in blocks
    assert sum("name_0" in line for line in blocks) == 1, "NULL is left out"
    assert max(len(line) for line in blocks) <= 34


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.123456, "0.1235"),
        (123456.7, "123457"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (Decimal("2.50"), "2.5"),
        (True, "True"),
        ("two\nlines\t\x1b[31m", r"two\nlines\t\x1b[31m"),
        ({"policy": "v0001"}, "policy=v0001"),
        (["a", "b"], "a, b"),
        ([{"x": 1}], '[{"x": 1}]'),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 678), "2026-01-02 03:04:05"),
    ],
)
def test_a_cell_is_one_line_of_plain_text(value: Any, text: str) -> None:
    assert text_table.cell(value) == text
