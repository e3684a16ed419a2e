"""What an attempt of the calculator agent is worth.

    1     the calculation gives the answer, and the model wrote nothing else
    0.8   … with other text around it
    -0.05 off either, where the model did not repeat the result as its answer
    0.1   a calculation that can be computed, but not this problem's
    0     anything else

The calculation is what is to be learned, so it makes all but a twentieth of the reward; repeating a number is there so
that the second call has something to learn at all. A task counts as solved from 0.75 on (`evaluation.success_reward`):
the right calculation, whatever stands around it.
"""

import re
from typing import Any

from calculator import evaluate


def grade(task: dict[str, Any], output: Any, spans: Any) -> float:
    """The reward of one attempt. `output` is what `agent.run` returned, or anything where that failed."""
    if not isinstance(output, dict) or not isinstance(output.get("expression"), str):
        return 0.0
    expression = output["expression"]
    try:
        result = evaluate(expression)
    except ValueError:
        return 0.0
    # `calc(36)` computes nothing: the model would be guessing the answer.
    if result != task["answer"] or not re.search(r"\d\s*\)*\s*[-+*/]", expression):
        return 0.1
    alone = str(output.get("reply", "")).strip() == f"calc({expression})"
    return (1.0 if alone else 0.8) - (0.0 if _states(output.get("answer"), result) else 0.05)


def grade_in_words(task: dict[str, Any], output: Any, spans: Any) -> dict[str, Any]:
    """The same reward, and why in words: for a model that writes the prompt anew (prompts.yaml)."""
    reward = grade(task, output, spans)
    reply = output.get("reply") if isinstance(output, dict) else output
    if reward == 0:
        words = f"the first reply has no calc(EXPRESSION) that can be computed, such as calc({task['expression']}): {reply!r}"
    elif reward <= 0.1:
        words = f"{reply!r} is not this problem's calculation; calc({task['expression']}) is, and nothing is computed beforehand"
    elif reward < 0.9:
        words = f"right, but the first reply is to be calc(...) alone, not {reply!r}"
    else:
        words = (
            "right" if reward == 1 else f"right, but the last reply is to be the result alone, not {output['answer']!r}"
        )
    return {"reward": reward, "words": words}


def _states(answer: Any, result: float) -> bool:
    """Whether the one number in the answer is the result."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", str(answer).replace(",", ""))
    return len(numbers) == 1 and float(numbers[0]) == float(result)
