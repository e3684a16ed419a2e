"""Two agents of AutoGen in a team that speaks in turn."""

import asyncio
import json
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

STOCK = {"apples": 6, "pears": 8, "plums": 9, "nuts": 12}


def lookup(topic: str) -> str:
    """Look up how many there are of something."""
    return f"there are {STOCK.get(topic, 0)} {topic}"


def divide(a: int, b: int) -> float:
    """Divide a by b."""
    return a / b


# AutoGen asks this of every model that is not OpenAI's own.
MODEL_INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": False,
    "family": "unknown",
    "structured_output": False,
}


def agent(name: str, says: str, tool) -> AssistantAgent:
    model = OpenAIChatCompletionClient(model="policy", model_info=MODEL_INFO)
    return AssistantAgent(name, model, tools=[tool], system_message=says, max_tool_iterations=4)


def planner() -> AssistantAgent:
    return agent("planner", "You plan. Look up what is asked for.", lookup)


def executor() -> AssistantAgent:
    return agent("executor", "You carry out plans. Divide where you are told to.", divide)


async def main(task: dict) -> None:
    question = task["question"]
    if task.get("parallel"):
        agents = (planner(), executor(), executor())
        *_, result = await asyncio.gather(*(one.run(task=question) for one in agents))
    else:
        team = RoundRobinGroupChat([planner(), executor()], termination_condition=MaxMessageTermination(3))
        result = await team.run(task=question)
    print(result.messages[-1].content)


asyncio.run(main(json.load(sys.stdin)))
