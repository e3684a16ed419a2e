"""A crew of CrewAI."""

import json
import sys

from crewai import LLM, Agent, Crew, Process, Task
from crewai.tools import tool

STOCK = {"apples": 6, "pears": 8, "plums": 9, "nuts": 12}


def lookup(topic: str) -> str:
    """Look up how many there are of something."""
    return f"there are {STOCK.get(topic, 0)} {topic}"


def divide(a: int, b: int) -> float:
    """Divide a by b."""
    return a / b


model = LLM(model="policy", provider="openai")
planner = Agent(
    role="planner",
    goal="plan",
    backstory="You plan. Look up what is asked for.",
    llm=model,
    tools=[tool("lookup")(lookup)],
)
executor = Agent(
    role="executor",
    goal="carry out",
    backstory="You carry out plans. Divide where you are told to.",
    llm=model,
    tools=[tool("divide")(divide)],
)

asked = json.load(sys.stdin)
question, parallel = asked["question"], asked.get("parallel", False)
tasks = [
    Task(description=question, expected_output="a plan", agent=planner, async_execution=parallel),
    Task(description=question, expected_output="a number", agent=executor, async_execution=parallel),
]
if parallel:  # a crew ends with one task at most that nobody waits for
    tasks[1].context = []
    tasks.append(Task(description=question, expected_output="a number", agent=executor, context=[]))
print(Crew(agents=[planner, executor], tasks=tasks, process=Process.sequential).kickoff().raw)
