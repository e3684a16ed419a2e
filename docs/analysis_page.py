"""docs/analysis.md: every question of sql/analysis with what it answers of a real run."""

from __future__ import annotations

from pathlib import Path

from lightning_core.lake import ask, catalog, sql, text_table

_ROWS = 16
_WIDTH = 150


def analysis_page(home: Path) -> str:
    """The page, from the lake of a run that has ended. Raises FileNotFoundError where there is none."""
    with catalog.connect(home / "lake") as con:
        runs = con.execute(
            "SELECT run, count(*), count(*) FILTER (mode = 'train'), sum(calls)::BIGINT FROM epochs GROUP BY run ORDER BY run"
        ).fetchall()
        lines = [
            "# Questions to the catalog",
            "",
            "Each is a file of `sql/analysis/`: ask it with `lightning-flows sql NAME`, or paste what `lightning-flows sql --show NAME`",
            "prints into DuckDB, started in the lake's folder on `catalog.duckdb`. None takes a parameter. Where a run or an epoch",
            "has to be chosen it is the last one; the CTE `chosen` at the top is the place to name another. The tables and views",
            "they read are in [data.md](data.md).",
            "",
            "The answers below are of real runs, as `python -m docs.generate analysis --home HOME` found them:",
            *(
                f"`{run}`, {trained} epochs and {all_ - trained} evaluations, {calls:,} calls."
                for run, all_, trained, calls in runs
            ),
            f"At most {_ROWS} rows are shown; an empty cell is NULL.",
        ]
        for name in ask.questions():
            result = con.execute(sql.text(f"analysis/{name}"))
            columns = [column[0] for column in result.description or []]
            rows = result.fetchall()
            table = text_table.render(columns, rows[:_ROWS], _WIDTH)
            more = [f"… {len(rows) - _ROWS} more"] if len(rows) > _ROWS else []
            said = table + more if rows else ["(no rows: nothing of the kind happened)"]
            lines += ["", f"## {name}", "", *_header(name), "", "```text", *said, "```"]
    return "\n".join(lines) + "\n"


def _header(name: str) -> list[str]:
    comments = []
    for line in sql.text(f"analysis/{name}").splitlines():
        if not line.startswith("--"):
            break
        comments.append(line.removeprefix("--").strip())
    return comments
