"""Questions to the catalog: SQL, or by name a question of `sql/analysis` (a macro of the catalog), a view or a table."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
from rich.console import Console

from lightning_core.lake import catalog, sql, text_table, user_sql
from lightning_core.lake.derived_tables import DERIVED
from lightning_core.lake.manifest import LakeError

_ROWS_OF_A_TABLE = 50
_DERIVING = ("hierarchy", "triplets", "advantages")


def overview(root: Path | str) -> str:
    """Return what can be asked: stored tables with their rows, views, named questions; what was late or rejected."""
    with catalog.connect(root) as con:
        try:
            stored = [(name, _count(con, f"SELECT count(*) FROM stored.{name}")) for name in ("spans", *DERIVED)]
            lost = dict(con.execute("SELECT problem, sum(spans) FROM late_and_rejected() GROUP BY ALL").fetchall())
        except duckdb.CatalogException as error:
            raise LakeError(of_another_version(root, error)) from None
    lines = ["Tables:"] + [f"  {name:<20} {rows:>12,} rows" for name, rows in stored]
    if lost.get("rejected"):
        lines.append(f"Spans that could not be decoded: {int(lost['rejected']):,} (table rejections)")
    if lost.get("late"):
        lines.append(
            f"Spans that came after their epoch was sealed: {int(lost['late']):,} (question late_and_rejected)"
        )
    views = sorted({*catalog.VIEWS} - {*DERIVED})
    lines += ["", "Views:"] + [f"  {name:<20} {sql.title(f'views/{name}')}" for name in views]
    asked = {name: call(name) for name in questions()}
    width = max(map(len, asked.values()))
    lines += ["", "Questions:"] + [
        f"  {shown:<{width}} {sql.title(f'analysis/{name}')}" for name, shown in asked.items()
    ]
    lines += [
        "",
        "lightning-flows sql NAME                       answers a question, or shows a table or view",
        "lightning-flows sql \"NAME(p_run := 'first')\"   the question with parameters; each can be left out",
        'lightning-flows sql "SELECT … FROM NAME() …"   any query, with questions, tables and views in it',
        "lightning-flows sql --show NAME                its SQL, to be changed and asked again",
        "lightning-flows sql --python                   how to open the catalog in Python, and DataFrames of it",
    ]
    return "\n".join(lines)


def python(root: Path, question: str | None = None) -> str:
    """Return Python code that asks a question from any folder; by default `epoch_report`.

    Raises what `catalog.connect` raises; LakeError for an unknown name.
    """
    with catalog.connect(root) as con:
        text = resolve(con, question or "epoch_report")
    return f"""\
import duckdb

lake = {_literal(str(root.resolve()))}
con = duckdb.connect(lake + "/catalog.duckdb", read_only=True, config={{"file_search_path": lake}})
answer = con.sql({_literal(text)})  # any SQL
answer.show()
print(answer.pl())  # a DataFrame of polars, if that is installed
print(answer.df())  # of pandas, likewise"""


def _literal(text: str) -> str:
    """Return a text as a Python string in double quotes, as JSON writes it too."""
    return json.dumps(text, ensure_ascii=False)


def questions() -> list[str]:
    """Return the names of the files of sql/analysis."""
    return [name.removeprefix("analysis/") for name in sql.names("analysis")]


def call(name: str) -> str:
    """Return a question with its parameters: `epoch_report(p_run, p_epoch)`."""
    return f"{name}({', '.join(sql.parameters(f'analysis/{name}'))})"


def show(name: str) -> str:
    """Return the SQL of a question, of a view, or of the step that makes a derived table.

    Where a view shows that table, return the SQL of both. Raises LakeError for other names. A question's parameters
    stand in it as `NULL /* p_run */`, to be replaced.
    """
    if name in questions():
        return _with_parameters_to_fill_in(sql.text(f"analysis/{name}")) + ";"
    files = [f"{folder}/{name}" for folder in ("views", *_DERIVING) if f"{folder}/{name}" in sql.names(folder)]
    if files:
        return "\n\n".join(f"-- sql/{file}.sql\n{sql.text(file)};" for file in files)
    known = [path.rsplit("/", 1)[-1] for folder in ("analysis", "views", *_DERIVING) for path in sql.names(folder)]
    raise LakeError(f"no SQL is called {name!r}{_close(name, known)}; `lightning-flows sql` lists what there is")


def _with_parameters_to_fill_in(text: str) -> str:
    named = (
        line if line.startswith("--") else sql.PARAMETER.sub(r"NULL /* \g<0> */", line) for line in text.splitlines()
    )
    return "\n".join(named)


def answer(root: Path | str, question: str, form: str = "table", limit: int | None = None, **more: Any) -> str:
    """Return the result of a question as text; see `lines`."""
    return "\n".join(lines(root, question, form, limit, **more))


def lines(
    root: Path | str,
    question: str,
    form: str = "table",
    limit: int | None = None,
    *,
    read_from: Sequence[str] = (),
    timeout_s: float = user_sql.TIMEOUT_S,
) -> Iterator[str]:
    """Yield the result of a question, line by line, as table, csv, or json (one object a row).

    A table fits the terminal; where stdout is none, its cells are whole. limit: rows; by default 50 of a table, and all
    as csv or json. read_from: folders, beside the lake, whose files it may read. Raises LakeError, one line, for what
    cannot be asked.
    """
    also = [*([root] if isinstance(root, str) else []), *(str(Path(folder).resolve()) for folder in read_from)]
    with catalog.connect_alone(root) as con:
        try:
            with user_sql.asked(con, resolve(con, question), also, timeout_s) as found:
                if form == "table":
                    shown = _ROWS_OF_A_TABLE if limit is None else limit
                    yield from _table(found.columns, list(found.rows(shown + 1)), shown)
                else:
                    yield from (_csv if form == "csv" else _json)(found.columns, found.rows(limit))
        except user_sql.QueryError as error:
            raise LakeError(_remedy(root, str(error))) from None


def resolve(con: duckdb.DuckDBPyConnection, question: str) -> str:
    """Return the SQL of a question; a single word is a name."""
    name = question.strip().removesuffix(";")
    if name in questions():
        return f"FROM {name}()"
    called = re.match(r"(\w+)\s*\(", name)
    if called is not None and called[1] in questions():
        return f"FROM {name}"
    if not name.isidentifier():
        return question
    tables = [row[0] for row in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
    views = [row[0] for row in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
    if name in (*tables, *views):
        return f"FROM {name}"
    known = [*questions(), *tables, *views]
    raise LakeError(
        f"no question, view or table is called {name!r}{_close(name, known)}; `lightning-flows sql` lists them"
    )


def _close(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    near += [k for k in known if k not in near and name.lower() in k]
    return f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def _table(columns: list[str], rows: list[tuple[Any, ...]], limit: int) -> Iterator[str]:
    console = Console()
    yield from text_table.render(columns, rows[:limit], console.width if console.is_terminal else None)
    if len(rows) > limit:
        yield f"(the first {limit} rows; --limit N shows more, --format csv all)"
    else:
        yield f"({len(rows)} row{'s' * (len(rows) != 1)})"


def _csv(columns: list[str], rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="")
    for row in ([tuple(columns)], rows):
        for values in row:
            writer.writerow(values)
            yield out.getvalue()
            out.seek(0)
            out.truncate()


def _json(columns: list[str], rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(dict(zip(columns, map(_storable, row), strict=True)), default=_plain)


def _storable(value: Any) -> Any:
    """Return a value with null for each number that JSON does not have, and with text for keys that it cannot have."""
    if isinstance(value, dict):
        return {key if isinstance(key, str | int) else str(key): _storable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


def _remedy(root: Path | str, message: str) -> str:
    if "file system operations are disabled" in message:
        return f"{message}; SQL reads the lake alone, and what `--read-from FOLDER` names"
    missing = re.match(r"Catalog Error: Table( Function)? with name (\w+) does not exist", message)
    if missing is None or missing[2] not in questions():
        return message
    if missing[1]:
        return _of_another_version(root, message)
    return f"{missing[2]} is a question, which takes parentheses: FROM {missing[2]}()"


def of_another_version(root: Path | str, error: duckdb.Error) -> str:
    """Return the message for a catalog that lacks what this version asks it for."""
    return _of_another_version(root, user_sql.one_line(error))


def _of_another_version(root: Path | str, message: str) -> str:
    renewed = "`lightning-flows lake publish`" if isinstance(root, str) else "`lightning-flows ingest`"
    return f"{root}: the catalog is another version's ({message}); {renewed} renews it"


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    ((count,),) = con.execute(query).fetchall()
    return int(count or 0)
