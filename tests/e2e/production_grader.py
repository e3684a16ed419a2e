"""A grader of rollouts of production, for tests: it needs the task and the output that they were opened and ended with."""

from typing import Any


def grade(task: dict[str, Any], output: Any, spans: list[dict[str, Any]]) -> float:
    assert not any(span["op"].startswith("rollout") for span in spans)
    return float(task["worth"] * (output == {"worth": task["worth"]}))
