"""smolagents with OpenInference; the parallel agents run in threads."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from common import EXECUTOR, PLANNER, QUESTION, divide, lookup, tracing
from openinference.instrumentation.smolagents import SmolagentsInstrumentor
from smolagents import OpenAIModel, Tool, ToolCallingAgent

provider = tracing()
SmolagentsInstrumentor().instrument(tracer_provider=provider)


class Lookup(Tool):
    name = "lookup"
    description = "Look a topic up."
    inputs = {"topic": {"type": "string", "description": "what to look up"}}  # noqa: RUF012 - how smolagents wants it
    output_type = "string"

    def forward(self, topic: str) -> str:
        return lookup(topic)


class Divide(Tool):
    name = "divide"
    description = "Divide a by b."
    inputs = {  # noqa: RUF012 - how smolagents wants it
        "a": {"type": "integer", "description": "dividend"},
        "b": {"type": "integer", "description": "divisor"},
    }
    output_type = "number"

    def forward(self, a: int, b: int) -> float:
        return divide(a, b)


def agent(name: str, says: str, tool: Tool) -> ToolCallingAgent:
    model = OpenAIModel(
        "policy", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"], tool_choice="auto"
    )
    return ToolCallingAgent([tool], model, name=name, description=says, instructions=says, verbosity_level=0)


variant = json.load(sys.stdin)["variant"]
planner, executor = agent("planner", PLANNER, Lookup()), agent("executor", EXECUTOR, Divide())
if variant == "parallel":
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda one: one.run(QUESTION), [planner, executor, agent("executor", EXECUTOR, Divide())]))
else:
    executor.run(str(planner.run(QUESTION)))
provider.shutdown()
