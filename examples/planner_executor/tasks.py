"""Two-step word problems for the planner and the executor, the same on every machine and every version of Python.

    python examples/planner_executor/tasks.py 5      # look at a few

Each task: `id`, `question`, `first` and `answer` (integers: the result of the first step, and of both), `expression`
(for analysts, the agents do not read it). No held-out problem's numbers occur among those to train on.
"""

import random

NAMES = "Ada Ben Cleo Dan Eve Finn Grace Hugo Iris Jack Kim Leo Mia Noah Olga Paul Rosa Sam Tina Vera Will Zoe"
OBJECTS = "apples pencils marbles stickers cookies books coins shells cards balloons beads stamps flowers lemons"
FIRST = {
    "*": ["{n} has {a} boxes with {b} {o} in each.", "{n} buys {a} bags with {b} {o} in each."],
    "+": ["{n} has {a} {o} and buys {b} more.", "{n} has {a} {o} and finds {b} more."],
}
SECOND = {
    "-": ["Then {n} loses {c} {o}.", "Then {n} gives away {c} {o}."],
    "+": ["Then {n} gets {c} more {o}.", "Then {n} finds {c} more {o}."],
}
QUESTION = "How many {o} does {n} have now?"


def train_tasks(count: int = 1024) -> list[dict]:
    """The tasks to train on; a larger `count` only adds to them."""
    return _generate(random.Random(20_260_501), "train", count, {task["expression"] for task in heldout_tasks()})


def heldout_tasks(count: int = 64) -> list[dict]:
    """The tasks to evaluate on; every four of them hold one of each pair of operations."""
    return _generate(random.Random(11), "heldout", count, set())


def final_tasks() -> list[dict]:
    """The second half of the held-out tasks. Prompts and settings were chosen on the first; what is reported is of these."""
    return heldout_tasks()[32:]


def _generate(rng: random.Random, prefix: str, count: int, reserved: set[str]) -> list[dict]:
    tasks: list[dict] = []
    seen = set(reserved)
    while len(tasks) < count:
        one, two = "*+"[len(tasks) % 2], "-+"[len(tasks) // 2 % 2]
        a, b = _between(rng, 2, 9), _between(rng, 3, 20)
        first = a * b if one == "*" else a + b
        c = _between(rng, 2, min(20, first - 1))
        answer = first - c if two == "-" else first + c
        words = {"n": _pick(rng, NAMES.split()), "o": _pick(rng, OBJECTS.split()), "a": a, "b": b, "c": c}
        sentences = (_pick(rng, FIRST[one]), _pick(rng, SECOND[two]), QUESTION)
        expression = f"{a}{one}{b}{two}{c}"
        if expression in seen:
            continue
        seen.add(expression)
        question = " ".join(sentences).format(**words)
        task_id = f"{prefix}-{len(tasks):04d}"
        tasks.append({"id": task_id, "question": question, "first": first, "answer": answer, "expression": expression})
    return tasks


# Only `random()` is promised to stay the same from one version of Python to the next.
def _between(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _pick(rng: random.Random, items: list[str]) -> str:
    return items[_between(rng, 0, len(items) - 1)]


if __name__ == "__main__":
    import sys

    for task in train_tasks()[: int(sys.argv[1]) if len(sys.argv) > 1 else 8]:
        print(task["id"], task["question"], "->", task["expression"], "=", task["answer"])
