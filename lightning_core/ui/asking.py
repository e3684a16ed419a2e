"""The page's Ask: one query over the lake, or a saved question with its parameters, as a table, a chart or a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from starlette.responses import Response

from lightning_core.lake import ask, catalog, sql, user_sql
from lightning_core.ui import charts
from lightning_core.ui.figures import literal

SHOWN_ROWS, FILE_ROWS, _TIMEOUT_S = 1000, 1_000_000, 60.0
_MEDIA = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


def questions() -> list[dict[str, Any]]:
    """Return the saved questions: name, what each answers, its parameters."""
    return [
        {"name": name, "title": sql.title(f"analysis/{name}"), "parameters": sql.parameters(f"analysis/{name}")}
        for name in ask.questions()
    ]


def view_titles() -> dict[str, str]:
    """Return what each view has, by its name."""
    return {name: sql.title(f"views/{name}") for name in catalog.VIEWS}


def asked_for(query: Mapping[str, str]) -> str:
    """Return what an address asks: `q`, or the saved question `question` with the parameters that are given."""
    name = query.get("question")
    if name not in ask.questions():
        return query.get("q", "").strip()
    given = [f"{p} := {literal(query[p])}" for p in sql.parameters(f"analysis/{name}") if query.get(p)]
    return f"FROM {name}({', '.join(given)})"


def answered(root: Path, question: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return columns and first rows of an answer. Raises QueryError for what cannot be asked."""
    with catalog.connect_alone(root) as con, _asked(con, question) as answer:
        return answer.columns, list(answer.rows(SHOWN_ROWS))


def file(root: Path, question: str, form: str) -> Response:
    """Return an answer as a file, `csv` or `parquet`. Raises QueryError for what cannot be asked."""
    with catalog.connect_alone(root) as con, _asked(con, question) as answer:
        if form == "csv":
            text = io.StringIO()
            csv.writer(text).writerows([answer.columns, *answer.rows(FILE_ROWS)])
            content = text.getvalue().encode()
        else:
            written = io.BytesIO()
            pq.write_table(answer.table(FILE_ROWS), written, compression="zstd")
            content = written.getvalue()
    name = {"content-disposition": f'attachment; filename="answer.{form}"'}
    return Response(content, media_type=_MEDIA[form], headers=name)


def chart_of(columns: list[str], rows: list[tuple[Any, ...]]) -> Any:
    """Draw a chart of the answer where its first column is a number and another one too; else return None."""

    def numbers(at: int) -> bool:
        return all(
            isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e300 for v in (row[at] for row in rows)
        )

    if len(rows) < 2 or not columns or not numbers(0):
        return None
    lines = [
        charts.Line(name, sorted((float(row[0]), float(row[at]), float(row[at]), float(row[at])) for row in rows))
        for at, name in enumerate(columns)
        if at and numbers(at)
    ]
    return charts.line_chart(lines[:4], columns[0], percent=False) if lines else None


def _asked(con: Any, question: str) -> Any:
    return user_sql.asked(con, ask.resolve(con, question), timeout_s=_TIMEOUT_S)
