"""Execution match: 1 where the query gives the rows of the gold query, else 0.

The order of rows counts where the gold query orders them; the names of columns never do.
"""

import sqlite3
from collections import Counter
from typing import Any

from database import run


def grade(task: dict[str, Any], output: Any, spans: Any) -> float:
    right = run(task["database"], task["query"])  # a gold query that fails is an error of the data, and raised
    try:
        found = run(task["database"], str(output))
    except sqlite3.Error:
        return 0.0
    if "order by" in task["query"].lower():
        return float(found == right)
    return float(Counter(found) == Counter(right))
