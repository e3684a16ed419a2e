"""Rewards for agents that give none: `reward.grader` of the settings, run over what the attempts left behind.

A grader is a callable `(task, output, spans) → float | dict of floats`, or a SQL file. The dict may have the key `words`, a text that
says why. It runs after the attempts, over recorded spans, so the same code grades a fresh epoch and regrades an old one. Its rewards
are spans like any other.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from lightning_core import names
from lightning_core.client import STATUS_ERROR, STATUS_OK, SpanData, new_span_id, new_trace_id
from lightning_core.config import SettingsError
from lightning_core.lake import user_sql
from lightning_core.lake.conversation import json_or_text
from lightning_core.loading import code_digest, load_callable

logger = logging.getLogger(__name__)

Rewards = list[tuple[str, str, list[SpanData]]]  # (rollout id, attempt id, spans) of attempts
Post = Callable[[Rewards], None]  # they are durable when it returns
_SETTING = "reward.grader"
_AT_A_TIME = 256  # attempts whose spans are in memory while they are graded
_KEPT_BACK_S = 1.0  # what a kill takes of a slow grader's work


@dataclass(frozen=True)
class Ungraded:
    """An attempt that ran to its end and has no reward of the grader yet."""

    rollout_id: str
    attempt_id: str
    task: Any
    output: Any
    spans: list[dict[str, Any]]


@dataclass
class Grades:
    """What a grading gave: how many attempts, how many rewards could not be used, and the first reason."""

    graded: int = 0
    invalid: int = 0
    first_error: str | None = None


def find_ungraded(con: duckdb.DuckDBPyConnection, grader: str) -> list[tuple[str, str]]:
    """Return (rollout id, attempt id) of attempts that this grader has not graded, in their order, and make them the
    table `ungraded`."""
    con.execute(
        """
        CREATE OR REPLACE TABLE ungraded AS
        SELECT spans.rollout_id, spans.attempt_id, row_number() OVER (ORDER BY spans.rollout_id, spans.attempt_id) AS place
        FROM epoch_spans AS spans
        ANTI JOIN (
            SELECT rollout_id, attempt_id FROM epoch_spans
            WHERE op = 'reward' AND reward_source = 'grader' AND attributes['lightning.reward.grader'] = ?
        ) AS graded USING (rollout_id, attempt_id)
        WHERE spans.op = 'rollout' AND spans.outcome = 'ok'
        GROUP BY spans.rollout_id, spans.attempt_id
        """,
        [grader],
    )
    return con.execute("SELECT rollout_id, attempt_id FROM ungraded ORDER BY place").fetchall()


def read_ungraded(con: duckdb.DuckDBPyConnection, count: int) -> Iterator[Ungraded]:
    """Yield the attempts of the table `ungraded` with their spans, in order; some hundred at a time are in memory."""
    for first in range(1, count + 1, _AT_A_TIME):
        here = f"(SELECT * FROM ungraded WHERE place BETWEEN {first} AND {first + _AT_A_TIME - 1})"
        attempts = con.execute(
            f"""
            SELECT rollout_id, attempt_id, task, output
            FROM epoch_spans JOIN {here} USING (rollout_id, attempt_id) WHERE op = 'rollout'
            QUALIFY row_number() OVER (PARTITION BY place ORDER BY node) = 1 ORDER BY place
            """
        ).fetchall()
        relation = con.sql(
            f"""
            SELECT * EXCLUDE (prompt_ids, response_ids, choice_lengths, response_logprobs, task, output, scope, record_offset, record_index)
            FROM epoch_spans SEMI JOIN {here} USING (rollout_id, attempt_id) WHERE op <> 'rollout' ORDER BY node
            """
        )
        by_attempt: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in relation.to_arrow_table().to_pylist(maps_as_pydicts="lossy"):
            by_attempt.setdefault((row["rollout_id"], row["attempt_id"]), []).append(row)
        for r, a, task, output in attempts:
            yield Ungraded(r, a, json_or_text(task), json_or_text(output), by_attempt.get((r, a), []))


def grade(
    reference: str, con: duckdb.DuckDBPyConnection, post: Post, on_progress: Callable[[int, int], None] | None = None
) -> Grades:
    """Grade every ungraded attempt and post the rewards; a reward that is no finite number is posted as an error.

    con: has the tables `scored_attempts` and `epoch_spans`; a SQL grader sees these two and returns the columns
    rollout_id, attempt_id, reward.
    """
    digest = code_digest(reference)
    waiting = find_ungraded(con, digest)
    if reference.endswith(".sql"):
        results: Iterable[Any] = _from_sql(reference, con, waiting)
    else:
        function = load_callable(reference, _SETTING)
        results = (_call(function, attempt) for attempt in read_ungraded(con, len(waiting)))
    grades = Grades()
    waits: Rewards = []
    posted = time.monotonic()
    for done, ((rollout_id, attempt_id), result) in enumerate(zip(waiting, results, strict=True), 1):
        spans, error = _reward_spans(result, digest)
        grades.graded += 1
        if error is not None:
            grades.invalid += 1
            if grades.first_error is None:
                grades.first_error = f"rollout {rollout_id}: {error}"
                logger.error("%s %s gave no usable reward for %s", _SETTING, reference, grades.first_error)
        waits.append((rollout_id, attempt_id, spans))
        if len(waits) == _AT_A_TIME or done == len(waiting) or time.monotonic() - posted > _KEPT_BACK_S:
            post(waits)
            waits, posted = [], time.monotonic()
        if on_progress is not None:
            on_progress(done, len(waiting))
    return grades


def _call(function: Callable[..., Any], attempt: Ungraded) -> Any:
    try:
        return function(attempt.task, attempt.output, attempt.spans)
    except Exception as error:  # noqa: BLE001 - the user's code; one attempt it fails on must not lose the others
        return error


def _from_sql(reference: str, con: duckdb.DuckDBPyConnection, waiting: list[tuple[str, str]]) -> list[Any]:
    try:
        with user_sql.asked(con, Path(reference).read_text()) as answer:
            columns = answer.columns
            rows = [dict(zip(columns, row, strict=True)) for row in answer.rows()]
    except user_sql.QueryError as error:
        raise SettingsError(f"{_SETTING}: {reference}: {error}") from error
    missing = {"rollout_id", "attempt_id", "reward"} - set(columns)
    if missing:
        raise SettingsError(f"{_SETTING}: {reference}: no column {', '.join(sorted(missing))} in its result")
    found = {(row["rollout_id"], row["attempt_id"]): row["reward"] for row in rows}
    return [found.get(attempt, ValueError("the SQL returned no row for it")) for attempt in waiting]


def _reward_spans(result: Any, grader: str) -> tuple[list[SpanData], str | None]:
    """Return the spans of one grader's result; where it cannot be used, one span that says so, and the error."""
    values = dict(result) if isinstance(result, dict) else {"reward": result}
    words = values.pop("words") if isinstance(values.get("words"), str) else None
    bad = next((n for n, v in values.items() if not _is_number(v)), None)
    error, name = None, "reward"
    if isinstance(result, Exception):
        error = f"it raised {type(result).__name__}: {result}"
    elif "reward" not in values:
        error = f"its dict has no key 'reward', only {', '.join(map(str, values)) or 'nothing'}"
    elif bad is not None:
        error, name = f"{bad} is {values[bad]!r:.80}, not a finite number", str(bad)
    if error is not None:
        return [_span({names.REWARD_NAME: name, names.ERROR: error}, grader, error)], error
    reasons = {"reward": words}
    return [
        _span({names.REWARD: float(v), names.REWARD_NAME: str(n), names.REWARD_WORDS: reasons.get(n)}, grader)
        for n, v in values.items()
    ], None


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _span(attributes: dict[str, Any], grader: str, error: str | None = None) -> SpanData:
    now = time.time_ns()
    return SpanData(
        name=names.SPAN_REWARD,
        start_ns=now,
        end_ns=now,
        trace_id=new_trace_id(),
        span_id=new_span_id(),
        attributes={**attributes, names.REWARD_SOURCE: "grader", names.REWARD_GRADER: grader},
        status=STATUS_ERROR if error else STATUS_OK,
        status_message=error or "",
    )
