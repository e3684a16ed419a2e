"""Run the SQL of `sql/page` over the catalog, which is opened anew when it was rebuilt."""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from lightning_core.lake import catalog, sql
from lightning_core.lake.why import Finding, diagnose

Row = dict[str, Any]
# Views that nearly every figure reads: each is computed once, until the catalog is another one.
_HELD = ("rollouts", "epochs")
_PARAMETER = re.compile(r"\$([a-z_]+)\b")


@dataclass(frozen=True)
class Figure:
    """The rows of a figure, and the SQL that gives them."""

    rows: list[Row]
    sql: str

    @property
    def first(self) -> Row:
        """Its first row. Raises IndexError where there is none."""
        return self.rows[0]


class Figures:
    """The figures of the lake in `root`, a folder or a URL. Safe from threads, which wait for one another."""

    def __init__(self, root: Path | str) -> None:
        self.root = root
        self._lock = threading.RLock()
        self._con: duckdb.DuckDBPyConnection | None = None
        self._built: int | None = None
        self._opened = contextlib.ExitStack()
        self._diagnosed: dict[str, tuple[Any, list[Finding]]] = {}

    def ask(self, name: str, /, **parameters: Any) -> Figure:
        """Answer the file `name` of `sql/page`. Raises Missing before the first spans were decoded."""
        text = sql.text(f"page/{name}")
        with self.catalog() as con:
            found = con.execute(text, {key: parameters[key] for key in set(_PARAMETER.findall(text))})
            columns = [column[0] for column in found.description or []]
            rows = [dict(zip(columns, row, strict=True)) for row in found.fetchall()]
        return Figure(rows, _PARAMETER.sub(lambda match: literal(parameters[match[1]]), text))

    def findings(self, run: str) -> list[Finding]:
        """The diagnosis of a run that has an epoch; kept until a further stage of its epochs is done."""
        with self.catalog() as con:
            done = con.execute(
                "SELECT epoch, mode, hash(stages) FROM epoch_manifests WHERE run = ? ORDER BY ALL", [run]
            ).fetchall()
            if self._diagnosed.get(run, (None,))[0] != done:
                self._diagnosed[run] = (done, diagnose(con, run) if done else [])
            return self._diagnosed[run][1]

    def catalog(self) -> _Held:
        """Hold the newest catalog, in a `with`."""
        return _Held(self)

    def close(self) -> None:
        with self._lock:
            self._opened.close()
            self._con = None

    def _newest(self) -> duckdb.DuckDBPyConnection:
        built = None if isinstance(self.root, str) else catalog.built_ns(self.root)
        if self._con is None or built != self._built:
            self.close()  # first: a second connection to the path would be one to the former file
            con = self._opened.enter_context(catalog.connect(self.root))
            for view in _HELD:
                con.execute(f"CREATE TEMP TABLE {view} AS FROM {view}")
            self._con, self._built = con, built
        return self._con


class _Held:
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def __enter__(self) -> duckdb.DuckDBPyConnection:
        self._figures._lock.acquire()
        try:
            return self._figures._newest()
        except BaseException:
            self._figures._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._figures._lock.release()


def literal(value: Any) -> str:
    """The SQL literal of a parameter."""
    if value is None:
        return "NULL"
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    return "'" + str(value).replace("'", "''") + "'"
