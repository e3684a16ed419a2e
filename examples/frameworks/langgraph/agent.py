"""Two agents of LangChain in a graph of LangGraph."""

import asyncio
import json
import sys

from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph

STOCK = {"apples": 6, "pears": 8, "plums": 9, "nuts": 12}


def lookup(topic: str) -> str:
    """Look up how many there are of something."""
    return f"there are {STOCK.get(topic, 0)} {topic}"


def divide(a: int, b: int) -> float:
    """Divide a by b."""
    return a / b


model = ChatOpenAI(model="policy")
planner = create_agent(model, [lookup], system_prompt="You plan. Look up what is asked for.", name="planner")
executor = create_agent(
    model,
    [divide],
    system_prompt="You carry out plans. Divide where you are told to.",
    name="executor",
    middleware=[ToolRetryMiddleware(max_retries=0, on_failure="continue")],  # the model hears of a failure
)


def graph(parallel: bool) -> StateGraph:
    made = StateGraph(MessagesState)
    made.add_node("planner", planner)
    made.add_node("executor", executor)
    made.add_edge(START, "planner")
    made.add_edge(START if parallel else "planner", "executor")
    made.add_edge("executor", END)
    return made


task = json.load(sys.stdin)
state = {"messages": [("user", task["question"])]}
result = asyncio.run(graph(task.get("parallel", False)).compile().ainvoke(state))
print(result["messages"][-1].text)
