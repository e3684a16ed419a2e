"""Run SQL that a user wrote: one query that reads the lake and no other files, changes nothing, and ends.

`checked` admits one SELECT, or EXPLAIN, DESCRIBE or SUMMARIZE of one. In DuckDB a SELECT can hold what writes (`WITH w AS (COPY …)`) and
text that is parsed only later (`FROM query('…')`), so its parts are looked at, too: `allowed_directories` alone lets COPY replace a manifest.
`asked` runs it on a connection that from then on opens no other files and keeps its configuration.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import duckdb
import pyarrow as pa

from lightning_core.config import SettingsError
from lightning_core.errors import LightningError
from lightning_core.lake.catalog import file_list

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 600.0
MEMORY_GB = 2.0
_IN_THE_LAKE = ("spans", "derived")  # what its relative paths begin with
_FETCH = 1000  # rows at a time: any number of them in little memory
_READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_PARSED_LATER = {"query", "json_execute_serialized_sql"}
_COMMENTS = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_OPTIONS = r"(?:ANALYZE\b|\((?:\s|,|ANALYZE\b|FORMAT\s+\w+)*\))?"
_EXPLAIN = re.compile(rf"{_COMMENTS}EXPLAIN\b\s*{_OPTIONS}", re.IGNORECASE | re.DOTALL)
_ADMITTED = "one SELECT is run, or EXPLAIN, DESCRIBE or SUMMARIZE of one"


class QueryError(LightningError):
    """SQL that is not run, fails, or takes too long; one line."""


class Answer:
    """The result of a query, read as it is computed. What it reads raises QueryError."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, query: str, timeout_s: float, thread: ThreadPoolExecutor
    ) -> None:
        self._con, self._query, self._thread = con, query, thread
        self._left_s, self._timeout_s = timeout_s, timeout_s

    @cached_property
    def columns(self) -> list[str]:
        self._timed(self._con.execute, self._query)
        return [column[0] for column in self._con.description or []]

    def rows(self, limit: int | None = None) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of the result, `limit` at most."""
        left = limit if self.columns else 0
        while left is None or left > 0:
            batch = self._timed(self._con.fetchmany, _FETCH if left is None else min(_FETCH, left))
            yield from batch
            if not batch:
                return
            left = None if left is None else left - len(batch)

    def table(self, limit: int | None = None) -> pa.Table:
        """Return the result, or its first `limit` rows, as a table; for use in place of `rows`."""

        def computed() -> pa.Table:
            found = self._con.sql(self._query)
            return (found if limit is None else found.limit(limit)).to_arrow_table()

        return self._timed(computed)

    def _timed(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Wait here while another thread computes, so that Ctrl-C and the time end it: DuckDB looks too seldom."""
        began = time.monotonic()
        doing = self._thread.submit(work, *args, **kwargs)
        try:
            return doing.result(self._left_s)
        except TimeoutError:
            self._con.interrupt()
            raise QueryError(f"the query took longer than {self._timeout_s:g} s and was ended") from None
        except KeyboardInterrupt:
            self._con.interrupt()
            raise
        except duckdb.Error as error:
            raise QueryError(one_line(error)) from None
        finally:
            self._left_s -= time.monotonic() - began


@contextlib.contextmanager
def asked(
    con: duckdb.DuckDBPyConnection, text: str, also: Sequence[str] = (), timeout_s: float = TIMEOUT_S
) -> Iterator[Answer]:
    """Run the one query of `text` and give its answer; `con` stays confined.

    It reads the tables of `con`, and files of the lake (the connection's `file_search_path`) and of the folders or URLs
    `also`. Raises QueryError for what is not admitted, fails, or computes for longer than `timeout_s`.
    """
    query = checked(text)
    _confine(con, also)
    with ThreadPoolExecutor(1) as thread:
        yield Answer(con, query, timeout_s, thread)


@contextlib.contextmanager
def alone(con: duckdb.DuckDBPyConnection, tables: Sequence[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a new connection, with copies of some tables of `con`, for work that must not confine `con` itself."""
    lake, spill = _setting(con, "file_search_path"), _setting(con, "temp_directory")
    with duckdb.connect(config={"file_search_path": lake, "temp_directory": f"{spill}/alone"}) as own:
        for name in tables:
            own.from_arrow(con.sql(f"FROM {name}").to_arrow_table()).create(name)
        yield own


def read(file: str, setting: str) -> str:
    """Return the query of a .sql file that a setting names. Raises SettingsError where it cannot be read."""
    try:
        return Path(file).read_text().rstrip().removesuffix(";")
    except OSError as error:
        raise SettingsError(f"{setting}: {file}: cannot be read ({error.strerror})") from None


def checked(text: str) -> str:
    """Return the one query of `text`. Raises QueryError where it is none, or several, or does more than read."""
    try:
        statements = duckdb.extract_statements(text)
        if len(statements) != 1:
            raise QueryError(f"there are {len(statements) or 'no'} statements; {_ADMITTED}")
        query = statements[0].query
        explained = statements[0].type == duckdb.StatementType.EXPLAIN and _EXPLAIN.match(query)
        inner = duckdb.extract_statements(query[explained.end() :]) if explained else statements
        if [statement.type for statement in inner] != [duckdb.StatementType.SELECT]:
            kind = statements[0].type.name
            hint = "; a PIVOT needs IN (…) with the names of its columns" if kind == "MULTI" else ""
            raise QueryError(f"it is {kind}, not a query: {_ADMITTED}{hint}")
        with duckdb.connect() as con:
            ((tree,),) = con.execute("SELECT json_serialize_sql(?)", [inner[0].query]).fetchall()
    except duckdb.Error as error:
        raise QueryError(one_line(error)) from None
    if tree.startswith('{"error":true'):
        raise QueryError(json.loads(tree)["error_message"])
    # Text of the query itself is quoted in there, so it does not match.
    writing = sorted(set(re.findall(r'"type":"(\w+_NODE)"', tree)) - _READING)
    if writing:
        raise QueryError(f"it holds {writing[0].split('_')[0]}, which writes: {_ADMITTED}")
    for name in re.findall(r'"function_name":"(\w+)"', tree):
        if name.lower() in _PARSED_LATER:
            raise QueryError(f"it calls {name}(), which runs text as SQL: write that SQL as a subquery")
    return query


def one_line(error: duckdb.Error) -> str:
    """Return DuckDB's message without its drawing of the place; what it suggests stays."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith("LINE ") and line.strip("^~ "))


def _confine(con: duckdb.DuckDBPyConnection, also: Sequence[str]) -> None:
    if _setting(con, "lock_configuration") == "True":
        return  # it is already
    lake = _setting(con, "file_search_path")
    # DuckDB looks for a relative path in the working directory first, then in the lake: it has to be allowed in both.
    readable = [lake, *(str(Path.cwd() / folder) for folder in _IN_THE_LAKE)] if lake else []
    con.execute(f"SET memory_limit = '{MEMORY_GB}GB'")
    con.execute(f"SET allowed_directories = {file_list([*readable, *also])}")
    con.execute("SET enable_external_access = false; SET lock_configuration = true")


def _setting(con: duckdb.DuckDBPyConnection, name: str) -> str:
    ((value,),) = con.execute("SELECT current_setting(?)", [name]).fetchall()
    return str(value or "")
