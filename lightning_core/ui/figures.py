"""Run the SQL of `sql/page` over the catalog.

Where the catalog was rebuilt, the new one is opened beside the one that is held, and takes its place once it can be asked: nobody
waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from lightning_core.errors import LightningError
from lightning_core.lake import catalog, sql
from lightning_core.lake.held import hold, renew
from lightning_core.lake.why import Finding, diagnose, newest_run

logger = logging.getLogger(__name__)

Row = dict[str, Any]
# Views that nearly every figure reads, in the order they build on one another: each is computed once a catalog. And views over them.
_HELD, _OVER = ("attempts", "call_twins", "rollouts", "epochs"), ("tool_calls", "learned_from")
_UNNOTICED_S = 0.1
_PARAMETER = re.compile(r"\$([a-z_]+)\b")


@dataclass(frozen=True)
class Figure:
    """The rows of a figure, and the SQL that gives them."""

    rows: list[Row]
    sql: str

    @property
    def first(self) -> Row:
        """Return its first row. Raises IndexError where there is none."""
        return self.rows[0]


class Figures:
    """The figures of the lake in `root`, a folder or a URL. Safe from threads, which wait for one another."""

    def __init__(self, root: Path | str) -> None:
        self.root = root
        self._lock = threading.RLock()
        self._open: _Open | None = None
        self._opening: threading.Thread | None = None

    def ask(self, name: str, /, **parameters: Any) -> Figure:
        """Answer the file `name` of `sql/page`. Raises Missing before the first spans were decoded."""
        text = sql.text(f"page/{name}")
        with self.catalog() as con:
            found = con.execute(text, {key: parameters[key] for key in set(_PARAMETER.findall(text))})
            columns = [column[0] for column in found.description or []]
            rows = [dict(zip(columns, row, strict=True)) for row in found.fetchall()]
        return Figure(rows, filled(text, parameters))

    def findings(self, run: str) -> list[Finding]:
        """Return the diagnosis of a run; it is kept until a further stage of its epochs is done."""
        with self.catalog():
            assert self._open is not None
            return self._open.findings(run)

    def prepare(self) -> None:
        """Open the catalog and diagnose the newest run, so that the first who asks need not wait.

        What fails here fails again for them.
        """
        with contextlib.suppress(duckdb.Error, LightningError), self.catalog() as con:
            self.findings(newest_run(con))

    @contextlib.contextmanager
    def catalog(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Hold the newest catalog that can be asked."""
        self._look()
        with self._lock:
            if self._open is None:
                self._open = _Open(self.root, {})
            yield self._open.con

    def close(self) -> None:
        with self._lock:
            if self._open is not None:
                self._open.close()
            self._open = None

    @property
    def renewing(self) -> bool:
        """Return whether a newer catalog is being opened."""
        return self._opening is not None

    def _look(self) -> None:
        """Open the catalog beside the held one where it was rebuilt; wait for it no longer than a person notices."""
        with self._lock:
            held = self._open
            if self._opening is not None or held is None or held.built == _built(self.root):
                return
            opening = self._opening = threading.Thread(target=self._renew, args=(held,), daemon=True)
            opening.start()
        opening.join(_UNNOTICED_S)

    def _renew(self, former: _Open) -> None:
        newer = None
        try:
            newer = _Open(self.root, former.diagnosed)
            for run in list(newer.diagnosed):
                newer.findings(run)
        except (duckdb.Error, LightningError, OSError) as error:  # a full disk, for one: the catalog is copied
            logger.warning("%s: %s", self.root, error)
            if newer is not None:
                newer.close()
            newer = None  # the next question opens the catalog again, and shows the error
        with self._lock:
            if self._open is former:
                former.close()
                self._open = newer
            elif newer is not None:
                newer.close()
            self._opening = None


class _Open:
    """A catalog that is open, with what is computed once; of its own, so that one may be opened beside another."""

    def __init__(self, root: Path | str, diagnosed: dict[str, tuple[Any, list[Finding]]]) -> None:
        self.built, self.diagnosed = _built(root), dict(diagnosed)
        with contextlib.ExitStack() as stack:
            self.con = stack.enter_context(catalog.connect_alone(root))
            for view in _HELD:
                hold(self.con, view)
            for column in ("task", "output"):  # the largest, which rollouts have too
                self.con.execute(f"ALTER TABLE attempts DROP COLUMN {column}")
            for view in _OVER:
                renew(self.con, view)
            self._stack = stack.pop_all()

    def findings(self, run: str) -> list[Finding]:
        done = self.con.execute(
            "SELECT epoch, mode, hash(stages) FROM epoch_manifests WHERE run = ? ORDER BY ALL", [run]
        ).fetchall()
        if self.diagnosed.get(run, (None,))[0] != done:
            self.diagnosed[run] = (done, diagnose(self.con, run) if done else [])
        return self.diagnosed[run][1]

    def close(self) -> None:
        self._stack.close()


def _built(root: Path | str) -> int | None:
    return None if isinstance(root, str) else catalog.built_ns(root)


def filled(text: str, parameters: dict[str, Any]) -> str:
    """Return a query with its parameters in it, to be asked elsewhere."""
    return _PARAMETER.sub(lambda match: literal(parameters[match[1]]), text)


def literal(value: Any) -> str:
    """Return the SQL literal of a parameter."""
    if value is None:
        return "NULL"
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    return "'" + str(value).replace("'", "''") + "'"
