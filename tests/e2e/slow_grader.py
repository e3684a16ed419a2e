"""A grader that takes its time, so that a test can end the flow while it grades."""

import time
from typing import Any


def grade(task: dict[str, Any], output: Any, spans: list[dict[str, Any]]) -> float:
    time.sleep(0.1)
    text = str(output)
    return sum(c.islower() for c in text) / max(len(text), 1)
