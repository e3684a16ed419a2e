"""Two agents of pydantic-ai."""

import asyncio
import json
import sys

from pydantic_ai import Agent, ModelRetry
from pydantic_ai.models.openai import OpenAIChatModel

STOCK = {"apples": 6, "pears": 8, "plums": 9, "nuts": 12}

planner = Agent(OpenAIChatModel("policy"), name="planner", instructions="You plan. Look up what is asked for.")
executor = Agent(
    OpenAIChatModel("policy"), name="executor", instructions="You carry out plans. Divide where you are told to."
)


@planner.tool_plain
def lookup(topic: str) -> str:
    """Look up how many there are of something."""
    return f"there are {STOCK.get(topic, 0)} {topic}"


@executor.tool_plain
def divide(a: int, b: int) -> float:
    """Divide a by b."""
    try:
        return a / b
    except ZeroDivisionError as error:
        raise ModelRetry(str(error)) from error  # the model hears of the failure


async def main(task: dict) -> None:
    question = task["question"]
    if task.get("parallel"):
        *_, result = await asyncio.gather(planner.run(question), executor.run(question), executor.run(question))
    else:
        plan = await planner.run(question)
        result = await executor.run(plan.output)
    print(result.output)


asyncio.run(main(json.load(sys.stdin)))
