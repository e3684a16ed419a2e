"""Two agents of smolagents; at the same time they run in threads."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from smolagents import OpenAIModel, ToolCallingAgent, tool

STOCK = {"apples": 6, "pears": 8, "plums": 9, "nuts": 12}


@tool
def lookup(topic: str) -> str:
    """Look up how many there are of something.

    Args:
        topic: what to look up
    """
    return f"there are {STOCK.get(topic, 0)} {topic}"


@tool
def divide(a: int, b: int) -> float:
    """Divide a by b.

    Args:
        a: dividend
        b: divisor
    """
    return a / b


def agent(name: str, says: str, uses) -> ToolCallingAgent:
    # Without `tool_choice` a ToolCallingAgent forces a tool on the model; what is forced is not what the policy would
    # have said, and such calls are not trained on.
    model = OpenAIModel(
        "policy", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"], tool_choice="auto"
    )
    return ToolCallingAgent([uses], model, name=name, description=says, instructions=says, verbosity_level=0)


def planner() -> ToolCallingAgent:
    return agent("planner", "You plan. Look up what is asked for.", lookup)


def executor() -> ToolCallingAgent:
    return agent("executor", "You carry out plans. Divide where you are told to.", divide)


task = json.load(sys.stdin)
if task.get("parallel"):
    with ThreadPoolExecutor() as threads:
        *_, result = threads.map(lambda one: one.run(task["question"]), [planner(), executor(), executor()])
else:
    result = executor().run(str(planner().run(task["question"])))
print(result)
