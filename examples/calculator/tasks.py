"""One-step word problems for the calculator agent, the same on every machine and every version of Python.

    python examples/calculator/tasks.py 5      # look at a few

Each task: `id`, `question`, `answer` (an integer), `expression` (how it is computed) and `kind` (its operation and its
wording, `* 7`; both are not read by the agent). No calculation of the held-out tasks occurs among those to train on.
"""

import random

NAMES = (
    "Ada Ben Cleo Dan Eve Finn Grace Hugo Iris Jack Kim Leo Mia Noah Olga Paul Quinn Rosa Sam Tina Uma Vera Will Zoe"
)
OBJECTS = (
    "apples pencils marbles stickers cookies books coins shells cards balloons beads stamps buttons flowers lemons "
    "candles bottles ribbons crayons peaches tickets stones cups socks"
)
TEMPLATES = {
    "+": [
        "{n} has {a} {o} and buys {b} more. How many {o} does {n} have now?",
        "There are {a} {o} on the table and {b} {o} on the shelf. How many {o} are there in all?",
        "{n} found {a} {o} on Monday and {b} {o} on Tuesday. How many {o} did {n} find?",
        "{m} gives {n} {b} {o}. {n} already had {a} {o}. How many {o} does {n} have in total?",
        "A shop sold {a} {o} in the morning and {b} in the afternoon. How many {o} did it sell that day?",
        "{n} has {a} {o}. {m} has {b} {o} more than {n}. How many {o} does {m} have?",
        "After {n} gave away {b} {o}, {a} {o} were left. How many {o} did {n} have at first?",
    ],
    "-": [
        "{n} has {a} {o} and gives {b} of them to {m}. How many {o} does {n} have left?",
        "There were {a} {o} in a box. {n} took {b} out. How many {o} are still in the box?",
        "{n} sold {b} of {a} {o}. How many {o} remain?",
        "{n} wants {a} {o} and has {b} so far. How many more {o} does {n} need?",
        "{n} has {a} {o} and {m} has {b} {o}. How many more {o} does {n} have than {m}?",
        "{n} lost {b} {o}. Before that there were {a} {o}. How many {o} are left?",
        "Together {n} and {m} have {a} {o}. {m} has {b} of them. How many {o} does {n} have?",
    ],
    "*": [
        "{n} has {a} boxes with {b} {o} in each. How many {o} does {n} have?",
        "Each of {a} children brings {b} {o}. How many {o} do they bring altogether?",
        "One bag holds {b} {o}. How many {o} are in {a} bags?",
        "{n} collects {b} {o} every day. How many {o} does {n} have after {a} days?",
        "There are {a} rows of {o} with {b} {o} in every row. How many {o} are there?",
        "{n} buys {a} packs of {b} {o}. How many {o} is that?",
        "{m} has {b} {o}. {n} has {a} times as many. How many {o} does {n} have?",
    ],
    "/": [
        "{n} shares {a} {o} equally among {b} friends. How many {o} does each friend get?",
        "{a} {o} are packed into bags of {b}. How many bags are there?",
        "{n} puts {a} {o} into {b} boxes, the same number in each. How many {o} are in one box?",
        "{b} children split {a} {o} evenly. How many {o} does each child get?",
        "{n} uses {b} {o} a day. For how many days do {a} {o} last?",
        "There are {a} {o} in {b} equal rows. How many {o} are in a row?",
        "{n} has {a} {o}, which is {b} times as many as {m} has. How many {o} does {m} have?",
    ],
}


def train_tasks(count: int = 4096) -> list[dict]:
    """The tasks to train on; a larger `count` only adds to them."""
    reserved = {task["expression"] for task in heldout_tasks()}
    return _generate(random.Random(20_240_601), "train", count, reserved)


def heldout_tasks(count: int = 192) -> list[dict]:
    """The tasks to evaluate on; every four of them hold one of each operation."""
    return _generate(random.Random(7), "heldout", count, set())


def _generate(rng: random.Random, prefix: str, count: int, reserved: set[str]) -> list[dict]:
    tasks: list[dict] = []
    seen: set[str] = set()
    while len(tasks) < count:
        operation = "+-*/"[len(tasks) % 4]
        a, b, answer = _numbers(rng, operation)
        name, other = _pick(rng, NAMES.split()), _pick(rng, NAMES.split())
        wording, thing = _between(rng, 0, len(TEMPLATES[operation]) - 1), _pick(rng, OBJECTS.split())
        question = TEMPLATES[operation][wording].format(n=name, m=other, o=thing, a=a, b=b)
        expression = f"{a}{operation}{b}"
        if name == other or question in seen or expression in reserved:
            continue
        seen.add(question)
        task_id = f"{prefix}-{len(tasks):04d}"
        tasks.append(
            {
                "id": task_id,
                "question": question,
                "answer": answer,
                "expression": expression,
                "kind": f"{operation} {wording + 1}",
            }
        )
    return tasks


def _numbers(rng: random.Random, operation: str) -> tuple[int, int, int]:
    if operation == "+":
        a, b = _between(rng, 2, 99), _between(rng, 2, 99)
        return a, b, a + b
    if operation == "-":
        b = _between(rng, 2, 90)
        a = _between(rng, b + 2, 99)
        return a, b, a - b
    if operation == "*":
        a, b = _between(rng, 2, 12), _between(rng, 2, 99)
        return a, b, a * b
    b, answer = _between(rng, 2, 12), _between(rng, 2, 15)
    return b * answer, b, answer


# Only `random()` is promised to stay the same from one version of Python to the next.
def _between(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _pick(rng: random.Random, items: list[str]) -> str:
    return items[_between(rng, 0, len(items) - 1)]


if __name__ == "__main__":
    import sys

    for task in train_tasks()[: int(sys.argv[1]) if len(sys.argv) > 1 else 8]:
        print(task["id"], task["question"], "->", task["expression"], "=", task["answer"])
