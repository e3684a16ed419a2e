"""1 where the last number an agent said is the answer, else 0."""

import re
from typing import Any


def grade(task: dict[str, Any], output: Any, spans: Any) -> float:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", str(output))
    return float(bool(numbers) and float(numbers[-1]) == task["answer"])
