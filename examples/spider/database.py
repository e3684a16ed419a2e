"""Running a query of a model: read-only, and ended where it takes too long."""

import sqlite3
import time
from typing import Any

SECONDS = 5.0
MOST_ROWS = 10_000


def run(database: str, query: str) -> list[tuple[Any, ...]]:
    """The rows. Raises sqlite3.Error for a query that is none, writes, or does not end."""
    con = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        until = time.monotonic() + SECONDS
        con.set_progress_handler(lambda: time.monotonic() > until, 10_000)
        con.text_factory = lambda data: data.decode(errors="replace")
        return con.execute(query).fetchmany(MOST_ROWS)
    except sqlite3.Warning as error:  # two statements in one
        raise sqlite3.Error(str(error)) from error
    finally:
        con.close()
