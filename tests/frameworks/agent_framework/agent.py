"""Microsoft's Agent Framework with its own instrumentation."""

import asyncio
import json
import sys

from agent_framework import Agent
from agent_framework.observability import enable_instrumentation
from agent_framework.openai import OpenAIChatCompletionClient
from common import EXECUTOR, PLANNER, QUESTION, divide, lookup, tracing

provider = tracing()
enable_instrumentation(enable_sensitive_data=True)


def agent(name: str, says: str, tool) -> Agent:
    return Agent(OpenAIChatCompletionClient(model="policy"), says, name=name, tools=[tool])


async def main(variant: str) -> None:
    planner, executor = agent("planner", PLANNER, lookup), agent("executor", EXECUTOR, divide)
    if variant == "parallel":
        await asyncio.gather(*(one.run(QUESTION) for one in (planner, executor, executor)))
        return
    plan = await planner.run(QUESTION)
    await executor.run(plan.text)


asyncio.run(main(json.load(sys.stdin)["variant"]))
provider.shutdown()
