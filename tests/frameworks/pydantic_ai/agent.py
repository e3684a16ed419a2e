"""pydantic-ai with its own instrumentation."""

import asyncio
import json
import sys

from common import EXECUTOR, PLANNER, QUESTION, divide, lookup, tracing
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.models.openai import OpenAIChatModel

provider = tracing()
Agent.instrument_all()
planner = Agent(OpenAIChatModel("policy"), name="planner", instructions=PLANNER)
executor = Agent(OpenAIChatModel("policy"), name="executor", instructions=EXECUTOR)
planner.tool_plain(lookup)


@executor.tool_plain(name="divide")
def divide_or_retry(a: int, b: int) -> float:
    """Divide a by b."""
    try:
        return divide(a, b)
    except ZeroDivisionError as error:
        raise ModelRetry(str(error)) from error


async def main(variant: str) -> None:
    if variant == "parallel":
        await asyncio.gather(planner.run(QUESTION), executor.run(QUESTION), executor.run(QUESTION))
        return
    plan = await planner.run(QUESTION)
    await executor.run(plan.output)


asyncio.run(main(json.load(sys.stdin)["variant"]))
provider.shutdown()
