"""The same agent, shown how: it searches for one hop after the other and gives the answer, word for word.

vLLM's structured outputs do it: the model still samples the tokens, and they come with their ids as ever.
"""

import json
from dataclasses import replace
from typing import Any

from agents import Agent, AgentHooks
from traced import agent


class Shown(AgentHooks):  # type: ignore[type-arg]
    """Has the agent say one text after the other, a text a turn."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = iter(texts)

    def next(self, of: Agent) -> None:
        choice = {"structured_outputs": {"choice": [next(self._texts)]}}
        of.model_settings = replace(of.model_settings, temperature=None, extra_body=choice)

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        self.next(agent)


def texts(task: dict[str, Any]) -> list[str]:
    calls = [{"name": "search", "arguments": {"query": hop}} for hop in task["hops"]]
    queries = [f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>" for call in calls]
    return [*queries, f"<answer>{task['answer']}</answer>"]


async def run(task: dict[str, Any]) -> str | None:
    made = agent.researcher()
    hooks = Shown(texts(task))
    hooks.next(made)
    made.hooks = hooks
    agent.researcher = lambda: made
    return await agent.run(task)
