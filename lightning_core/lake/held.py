"""Views that are computed once on a connection, for a reader who asks them much.

What is held takes its view's place for all that is asked, or held, on the connection afterwards; a view of the catalog reads the
catalog's own views nevertheless, until it is `renewed`.
"""

from __future__ import annotations

import duckdb

from lightning_core.lake import sql


def hold(con: duckdb.DuckDBPyConnection, view: str, left_out: str = "", run: str | None = None) -> None:
    """Hold a view of `sql/views` as a temporary table, without the columns `left_out`; of `run` alone where given."""
    columns = f"* EXCLUDE ({left_out})" if left_out else "*"
    rows, given = ("WHERE run = $run", {"run": run}) if run is not None else ("", {})
    con.execute(f"CREATE TEMP TABLE {view} AS SELECT {columns} FROM ({sql.text(f'views/{view}')}) {rows}", given)


def renew(con: duckdb.DuckDBPyConnection, view: str) -> None:
    """Make a view of `sql/views` anew, so that it reads what is held."""
    con.execute(f"CREATE TEMP VIEW {view} AS {sql.text(f'views/{view}')}")


def held(con: duckdb.DuckDBPyConnection) -> set[str]:
    """Return the names of what is held on the connection."""
    return {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables() WHERE temporary").fetchall()}
