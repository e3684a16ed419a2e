"""1 where the number after `### ANSWER:` is the problem's, else 0."""

import re
from typing import Any

ANSWER = re.compile(r"###\s*ANSWER:\s*\$?(-?[\d,]+(?:\.\d+)?)", re.IGNORECASE)


def grade(task: dict[str, Any], output: Any, spans: Any) -> float:
    found = ANSWER.findall(str(output))
    if not found:
        return 0.0
    right, given = float(task["answer"]), float(found[-1].replace(",", "") or "nan")
    return float(abs(given - right) <= 1e-4 * max(1.0, abs(right)))
