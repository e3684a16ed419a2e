"""LangGraph with OpenInference, and OpenAI's client with OpenInference too, whose spans have no parent."""

import asyncio
import json
import sys

from common import EXECUTOR, PLANNER, QUESTION, divide, lookup, tracing
from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from openinference.instrumentation.langchain import LangChainInstrumentor
from openinference.instrumentation.openai import OpenAIInstrumentor

provider = tracing()
LangChainInstrumentor().instrument(tracer_provider=provider)
OpenAIInstrumentor().instrument(tracer_provider=provider)
model = ChatOpenAI(model="policy")
failures = ToolRetryMiddleware(max_retries=0, on_failure="continue")
planner = create_agent(model, [lookup], system_prompt=PLANNER, name="planner")
executor = create_agent(model, [divide], system_prompt=EXECUTOR, name="executor", middleware=[failures])


def graph(variant: str) -> StateGraph:
    made = StateGraph(MessagesState)
    made.add_node("planner", planner)
    made.add_node("executor", executor)
    made.add_edge(START, "planner")
    made.add_edge(*((START, "executor") if variant == "parallel" else ("planner", "executor")))
    made.add_edge("executor", END)
    return made


variant = json.load(sys.stdin)["variant"]
asyncio.run(graph(variant).compile().ainvoke({"messages": [("user", QUESTION)]}))
provider.shutdown()
