"""One question with one tool, by the client code of a framework; prints the answer. `agent.py CLIENT[-responses][-stream]`."""

import asyncio
import sys

QUESTION = "12*7?"
name, *how = sys.argv[1].split("-")
streaming, responses = "stream" in how, "responses" in how


def calc(x: str) -> str:
    """Computes."""
    return "84"


async def agents() -> str:
    from agents import Agent, Runner, function_tool, set_default_openai_api, set_tracing_disabled

    set_tracing_disabled(True)
    if not responses:
        set_default_openai_api("chat_completions")
    agent = Agent(name="p", instructions="use tools", model="policy", tools=[function_tool(calc)])
    if streaming:
        run = Runner.run_streamed(agent, QUESTION)
        async for _ in run.stream_events():
            pass
        return run.final_output
    first = await Runner.run(agent, QUESTION)
    if not responses:
        return first.final_output
    return (await Runner.run(agent, "again", previous_response_id=first.last_response_id)).final_output


async def langchain() -> str:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="policy", use_responses_api=responses, streaming=streaming).bind_tools([tool(calc)])
    asked = HumanMessage(QUESTION)
    call = await model.ainvoke([asked])
    result = ToolMessage("84", tool_call_id=call.tool_calls[0]["id"])
    return str((await model.ainvoke([asked, call, result])).text)


async def autogen() -> str:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    info = {"vision": False, "function_calling": True, "json_output": False, "structured_output": False}
    client = OpenAIChatCompletionClient(model="policy", model_info=info | {"family": "unknown"})
    agent = AssistantAgent("p", client, tools=[calc], reflect_on_tool_use=True, model_client_stream=streaming)
    return (await agent.run(task=QUESTION)).messages[-1].content


print(asyncio.run({"agents": agents, "langchain": langchain, "autogen": autogen}[name]()))
