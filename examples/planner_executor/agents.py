"""A planner and an executor that solve two-step word problems together. They know nothing of training: `openai` only.

    echo '{"question": "Ben has 3 boxes with 12 eggs in each. Then Ben loses 9 eggs. How many eggs does Ben have now?"}' \
      | python examples/planner_executor/agents.py

The planner splits the problem into two steps, `first; second`. The executor writes each step as a calculation, `calc(3*12)`;
a few lines of Python compute it, and the next step gets the result. Each asks for a model of its own name.
"""

import json
import re
import sys
from typing import Any

from openai import OpenAI

STEPS = 2
PLANNER = [
    {"role": "system", "content": "Split the problem into two short steps."},
    {
        "role": "user",
        "content": "Tom has 4 crates with 7 pens in each. Then Tom drops 5 pens. How many pens does Tom have now?",
    },
    {"role": "assistant", "content": "4 crates with 7; drops 5"},
    {
        "role": "user",
        "content": "Lily has 12 eggs and picks 6 more. Then Lily is given 3 more eggs. How many eggs does Lily have now?",
    },
    {"role": "assistant", "content": "12 and picks 6 more; is given 3 more"},
    {
        "role": "user",
        "content": "Nick has 15 nuts and takes 8 more. Then Nick eats 9 nuts. How many nuts does Nick have now?",
    },
    {"role": "assistant", "content": "15 and takes 8 more; eats 9"},
]
EXECUTOR = [
    {"role": "system", "content": "Write the step as a calculation, calc(...)."},
    {"role": "user", "content": "4 crates with 7"},
    {"role": "assistant", "content": "calc(4*7)"},
    {"role": "user", "content": "28; drops 5"},
    {"role": "assistant", "content": "calc(28-5)"},
    {"role": "user", "content": "12 and picks 6 more"},
    {"role": "assistant", "content": "calc(12+6)"},
    {"role": "user", "content": "18; is given 3 more"},
    {"role": "assistant", "content": "calc(18+3)"},
]
CALL = re.compile(r"calc\((-?\d{1,9}) ?([-+*]) ?(-?\d{1,9})\)")


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Solve `task["question"]`: the plan, what the executor wrote, and the results as far as they came."""
    client = OpenAI()
    plan = ask(client, "planner", PLANNER, task["question"], max_tokens=16)
    steps = [step.strip() for step in plan.split(";") if step.strip()][:STEPS]
    outcome: dict[str, Any] = {"plan": plan, "replies": [], "results": []}
    for step in steps:
        message = f"{outcome['results'][-1]}; {step}" if outcome["results"] else step
        reply = ask(client, "executor", EXECUTOR, message, max_tokens=10)
        outcome["replies"].append(reply)
        call = CALL.search(reply)
        if call is None:
            break
        outcome["results"].append(compute(*call.groups()))
    return outcome


def ask(client: OpenAI, model: str, examples: list[dict[str, str]], message: str, max_tokens: int) -> str:
    messages: Any = [*examples, {"role": "user", "content": message}]
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=max_tokens, temperature=0)
    return reply.choices[0].message.content or ""


def compute(left: str, operation: str, right: str) -> int:
    a, b = int(left), int(right)
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
