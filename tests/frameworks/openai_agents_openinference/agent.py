"""OpenAI's Agents SDK with OpenInference, and OpenAI's client with OpenInference too: each call is seen twice."""

import asyncio
import json
import sys

from agents import Agent, Runner, function_tool, set_default_openai_api
from common import EXECUTOR, PLANNER, QUESTION, divide, lookup, tracing
from openinference.instrumentation.openai import OpenAIInstrumentor
from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor

provider = tracing()
OpenAIAgentsInstrumentor().instrument(tracer_provider=provider)
OpenAIInstrumentor().instrument(tracer_provider=provider)
set_default_openai_api("chat_completions")
planner = Agent(name="planner", instructions=PLANNER, model="policy", tools=[function_tool(lookup)])
executor = Agent(name="executor", instructions=EXECUTOR, model="policy", tools=[function_tool(divide)])


async def main(variant: str) -> None:
    if variant == "parallel":
        await asyncio.gather(*(Runner.run(agent, QUESTION) for agent in (planner, executor, executor)))
        return
    plan = await Runner.run(planner, QUESTION)
    await Runner.run(executor, plan.final_output)


asyncio.run(main(json.load(sys.stdin)["variant"]))
provider.shutdown()
