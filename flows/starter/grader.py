"""What an attempt is worth: 1 for the right calculation alone, 0.8 for one among words, 0.1 for another one, else 0."""

import re

OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def grade(task: dict, output: object, spans: list) -> float:
    """Return the reward of one attempt. `output` is what the agent returned, `spans` what it did on the way."""
    answer = str(output).strip()
    calculation = re.search(r"(\d+) ?([-+*]) ?(\d+)", answer)
    if calculation is None:
        return 0.0
    a, operation, b = calculation.groups()
    if OPERATIONS[operation](int(a), int(b)) != task["answer"]:
        return 0.1
    return 1.0 if answer == calculation.group() else 0.8
