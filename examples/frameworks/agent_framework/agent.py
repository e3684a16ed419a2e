"""Two agents of Microsoft's Agent Framework."""

import asyncio
import json
import sys

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient

STOCK = {"apples": 6, "pears": 8, "plums": 9, "nuts": 12}


def lookup(topic: str) -> str:
    """Look up how many there are of something."""
    return f"there are {STOCK.get(topic, 0)} {topic}"


def divide(a: int, b: int) -> float:
    """Divide a by b."""
    return a / b


planner = Agent(
    OpenAIChatCompletionClient(model="policy"),
    "You plan. Look up what is asked for.",
    name="planner",
    tools=[lookup],
)
executor = Agent(
    OpenAIChatCompletionClient(model="policy"),
    "You carry out plans. Divide where you are told to.",
    name="executor",
    tools=[divide],
)


async def main(task: dict) -> None:
    question = task["question"]
    if task.get("parallel"):
        *_, result = await asyncio.gather(*(one.run(question) for one in (planner, executor, executor)))
    else:
        plan = await planner.run(question)
        result = await executor.run(plan.text)
    print(result.text)


asyncio.run(main(json.load(sys.stdin)))
