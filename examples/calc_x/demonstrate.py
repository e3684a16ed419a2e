"""The same agent, shown how: it can only compute the gold expression, and say what comes of it.

vLLM's structured outputs do it: the model still samples the tokens, and they come with their ids as ever.
"""

import json
from typing import Any

from traced import agent


def texts(task: dict[str, Any]) -> list[str]:
    call = {"name": "calculate", "arguments": {"expression": task["expression"]}}
    return [f"<tool_call>{json.dumps(call)}</tool_call>", f"### ANSWER: {agent.calculate(task['expression'])}"]


async def run(task: dict[str, Any]) -> str:
    replies = iter(texts(task))
    model = agent.client()
    create = model.create

    async def shown(*args: Any, **more: Any) -> Any:
        choice = {"structured_outputs": {"choice": [next(replies)]}}
        return await create(*args, **more | {"extra_create_args": {"temperature": 1, "extra_body": choice}})

    model.create = shown  # type: ignore[method-assign]
    agent.client = lambda: model
    return await agent.run(task)
