"""What an attempt of the planner and the executor is worth.

    1     two steps, and the second result is the answer
    0.4   the first step's result is right
    0.1   a calculation that can be computed
    0     anything else

A task counts as solved from 0.75 on (`evaluation.success_reward`).
"""

from typing import Any


def grade(task: dict[str, Any], output: Any, spans: Any) -> float:
    """The reward of one attempt, for both agents. `output` is what `agents.run` returned, or anything where that failed."""
    results = output.get("results") if isinstance(output, dict) else None
    if not results:
        return 0.0
    if len(results) == 2 and results[1] == task["answer"]:
        return 1.0
    return 0.4 if results[0] == task["first"] else 0.1
