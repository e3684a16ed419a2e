"""docs/analysis.md: every question of sql/analysis with what it answers of a real run."""

from __future__ import annotations

from pathlib import Path

from lightning_core.lake import ask, catalog, sql, text_table

_ROWS = 16
_WIDTH = 150
_ELSEWHERE = "/home/you/project/var/lake"

_INTRODUCTION = """\
Each question is a file of `sql/analysis/` and a table macro of the catalog, so you can use it in any query. All parameters
are optional; their defaults are given below. The tables and views that the questions read are in [data.md](data.md).

```sh
lightning-flows sql epoch_report
lightning-flows sql "epoch_report(p_run := 'first-try')"
lightning-flows sql "SELECT became, count(*) FROM task_changes() GROUP BY ALL"
lightning-flows sql --show epoch_report    # prints its SQL, with NULL for each parameter: edit and rerun it
lightning-flows sql --python               # prints Python that opens the catalog from any folder
```

The printed Python runs in any environment with `duckdb`, also while an epoch runs. Every answer converts to a DataFrame of
polars or pandas, if that is installed (both are here: pandas comes with MLflow):

```python not-run: with a home of yours; tests/unit/test_question_macros.py runs what it prints
{python}
```"""


def analysis_page(home: Path) -> str:
    """The page, from the lake of a run that has ended. Raises FileNotFoundError where there is none."""
    lake = (home / "lake").resolve()
    with catalog.connect(lake) as con:
        runs = con.execute(
            "SELECT run, count(*), count(*) FILTER (mode = 'train'), sum(calls)::BIGINT FROM epochs GROUP BY run ORDER BY run"
        ).fetchall()
        lines = [
            "# Questions to the catalog",
            "",
            *_INTRODUCTION.replace("{python}", ask.python(lake).replace(str(lake), _ELSEWHERE)).splitlines(),
            "",
            "The answers below come from real runs, as `python -m docs.generate analysis --home HOME` found them:",
            *(
                f"`{run}`, {trained} epochs and {all_ - trained} evaluations, {calls:,} calls."
                for run, all_, trained, calls in runs
            ),
            f"At most {_ROWS} rows are shown; an empty cell is NULL.",
        ]
        for name in ask.questions():
            result = con.execute(f"FROM {name}()")
            columns = [column[0] for column in result.description or []]
            rows = result.fetchall()
            table = text_table.render(columns, rows[:_ROWS], _WIDTH)
            more = [f"… {len(rows) - _ROWS} more"] if len(rows) > _ROWS else []
            shown = table + more if rows else ["(no rows: nothing of the kind happened)"]
            lines += ["", f"## {name}", "", *sql.header(f"analysis/{name}"), "", "```text", *shown, "```"]
    return "\n".join(lines) + "\n"
