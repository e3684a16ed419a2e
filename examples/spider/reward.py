"""Execution match: 1 where the query gives the rows of the gold query, else 0.

The order of rows counts where the gold query orders them; the names of columns never do. Its words say what was wrong.
"""

import sqlite3
from collections import Counter
from typing import Any

from database import run


def grade(task: dict[str, Any], output: Any, spans: Any) -> dict[str, float | str]:
    right = run(task["database"], task["query"])  # a gold query that fails is an error of the data, and raised
    try:
        found = run(task["database"], str(output))
    except sqlite3.Error as error:
        return {"reward": 0.0, "words": f"does not run: {error}"}
    ordered = "order by" in task["query"].lower()
    if found == right if ordered else Counter(found) == Counter(right):
        return {"reward": 1.0, "words": "right"}
    return {"reward": 0.0, "words": f"wrong: {len(found)} rows {found[:3]}, not {len(right)} rows {right[:3]}"}
