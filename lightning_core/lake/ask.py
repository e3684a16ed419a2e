"""Questions to the catalog: SQL, or a named file of `sql/analysis`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import duckdb

from lightning_core.lake import catalog, sql
from lightning_core.lake.manifest import LakeError


def overview(root: Path) -> str:
    """What can be asked: views of the catalog with their row counts, and the named questions."""
    with catalog.connect(root) as con:
        views = [
            r[0] for r in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1").fetchall()
        ]
        counts = [(view, con.execute(f"SELECT count(*) FROM {view}").fetchone()) for view in views]
    lines = ["Tables:"] + [f"  {view:<20} {count[0] if count else 0:>10,} rows" for view, count in counts]
    lines += ["", "Questions (lightning-flows sql NAME):"]
    lines += [f"  {name.removeprefix('analysis/'):<20} {sql.title(name)}" for name in sql.names("analysis")]
    lines += ["", 'Any SQL:  lightning-flows sql "SELECT agent, count(*) FROM policy_calls GROUP BY ALL"']
    lines += [f"In Python or DuckDB's shell, started in {root}: open catalog.duckdb read-only"]
    return "\n".join(lines)


def answer(root: Path, question: str, form: str = "table", limit: int = 50) -> str:
    """The result of a question as a table, csv or json."""
    text = sql.text(f"analysis/{question}") if f"analysis/{question}" in sql.names("analysis") else question
    with catalog.connect(root) as con:
        try:
            relation = con.sql(text)
            if relation is None:
                return "done"
            if form == "table":
                return str(relation.limit(limit)) if relation.columns else ""
            rows, columns = relation.fetchall(), relation.columns
        except duckdb.Error as error:
            raise LakeError(f"{error}") from None
    if form == "json":
        return "\n".join(json.dumps(dict(zip(columns, row, strict=True)), default=str) for row in rows)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue().rstrip()
