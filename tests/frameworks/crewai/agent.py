"""CrewAI with OpenInference."""

import json
import sys

from common import EXECUTOR, PLANNER, QUESTION, divide, lookup, tracing
from crewai import LLM, Agent, Crew, Process, Task
from crewai.tools import tool
from openinference.instrumentation.crewai import CrewAIInstrumentor

provider = tracing()
CrewAIInstrumentor().instrument(tracer_provider=provider)
model = LLM(model="policy", provider="openai")
planner = Agent(role="planner", goal="plan", backstory=PLANNER, llm=model, tools=[tool("lookup")(lookup)])
executor = Agent(role="executor", goal="carry out", backstory=EXECUTOR, llm=model, tools=[tool("divide")(divide)])

parallel = json.load(sys.stdin)["variant"] == "parallel"
plan = Task(description=QUESTION, expected_output="a plan", agent=planner, async_execution=parallel)
carry_out = Task(description=QUESTION, expected_output="a number", agent=executor, async_execution=parallel)
tasks = [plan, carry_out]
if parallel:  # a crew ends with one task at most that nobody waits for
    carry_out.context = []
    tasks.append(Task(description=QUESTION, expected_output="a number", agent=executor, context=[]))
Crew(agents=[planner, executor], tasks=tasks, process=Process.sequential).kickoff()
provider.shutdown()
