"""AutoGen's teams on its own runtime, with its own instrumentation."""

import asyncio
import json
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient
from common import EXECUTOR, PLANNER, QUESTION, divide, lookup, tracing

provider = tracing()
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


async def main(variant: str) -> None:
    planner, executor = agent("planner", PLANNER, lookup), agent("executor", EXECUTOR, divide)
    if variant == "parallel":
        other = agent("executor", EXECUTOR, divide)
        await asyncio.gather(*(one.run(task=QUESTION) for one in (planner, executor, other)))
        return
    team = RoundRobinGroupChat([planner, executor], termination_condition=MaxMessageTermination(3))
    await team.run(task=QUESTION)


asyncio.run(main(json.load(sys.stdin)["variant"]))
provider.shutdown()
