"""Two agents of OpenAI's Agents SDK. `python agent.py chat` talks to Chat Completions, not to the Responses API."""

import asyncio
import json
import sys

from agents import Agent, Runner, function_tool, set_default_openai_api

STOCK = {"apples": 6, "pears": 8, "plums": 9, "nuts": 12}


def lookup(topic: str) -> str:
    """Look up how many there are of something."""
    return f"there are {STOCK.get(topic, 0)} {topic}"


def divide(a: int, b: int) -> float:
    """Divide a by b."""
    return a / b


set_default_openai_api("chat_completions" if "chat" in sys.argv else "responses")
planner = Agent(
    name="planner",
    instructions="You plan. Look up what is asked for.",
    model="policy",
    tools=[function_tool(lookup)],
)
executor = Agent(
    name="executor",
    instructions="You carry out plans. Divide where you are told to.",
    model="policy",
    tools=[function_tool(divide)],
)


async def main(task: dict) -> None:
    question = task["question"]
    if task.get("parallel"):
        *_, result = await asyncio.gather(*(Runner.run(agent, question) for agent in (planner, executor, executor)))
    else:
        plan = await Runner.run(planner, question)
        result = await Runner.run(executor, plan.final_output)
    print(result.final_output)


asyncio.run(main(json.load(sys.stdin)))
