"""An upstream that plays the model of two agents: it calls their tools as a script says, and then gives an answer.

The planner calls `lookup` once. The executor calls `divide` by zero, which fails, then by two. Token ids are hashes of
messages, four a message, so that a prompt that repeats a reply as it was begins with that call's tokens.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import zlib
from typing import Any

from aiohttp import web

from tests.canned_vllm import CannedVllm

SCRIPT: dict[str, list[dict[str, Any]]] = {
    "lookup": [{"topic": "apples"}],
    "divide": [{"a": 1, "b": 0}, {"a": 6, "b": 2}],
}
REPLY_S = 0.05  # long enough that what runs in parallel overlaps


class ScriptedVllm(CannedVllm):
    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    async def _whole(self, body: dict[str, Any], chat: bool) -> web.Response:
        number = next(self._numbers)
        await asyncio.sleep(REPLY_S)
        message, finish = _reply(body, number)
        tokens = message_ids(message)
        content = [{"token": "t", "logprob": -0.5, "bytes": [116], "top_logprobs": []} for _ in tokens]
        choice = {"index": 0, "message": message, "finish_reason": finish, "stop_reason": None}
        choice |= {"logprobs": {"content": content}, "token_ids": tokens}
        prompt_ids = [token for message in body["messages"] for token in message_ids(message)]
        usage = {"prompt_tokens": len(prompt_ids), "completion_tokens": len(tokens)}
        return web.json_response(
            {
                "id": f"chatcmpl-{number:04d}",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": usage | {"total_tokens": len(prompt_ids) + len(tokens)},
                "prompt_token_ids": prompt_ids,
                "prompt_logprobs": None,
            }
        )


def message_ids(message: dict[str, Any]) -> list[int]:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    said = [message["role"], _text(message), [[call["name"], json.loads(call["arguments"])] for call in calls]]
    seed = zlib.crc32(json.dumps(said, sort_keys=True).encode())
    return [zlib.crc32(bytes([part]), seed) % 30_000 for part in range(4)]


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _reply(body: dict[str, Any], number: int) -> tuple[dict[str, Any], str]:
    offered = [tool["function"]["name"] for tool in body.get("tools") or []]
    for tool in SCRIPT:
        made = sum(_called(message, tool) for message in body["messages"])
        if tool in offered and made < len(SCRIPT[tool]):
            return _call(tool, SCRIPT[tool][made], number)
    said = "the answer is 3" if "divide" in offered else "there are 6; divide them"
    if "final_answer" in offered:
        return _call("final_answer", {"answer": said}, number)
    return {"role": "assistant", "content": said}, "stop"


def _called(message: dict[str, Any], tool: str) -> int:
    """How often; smolagents repeats calls as text, and of one that failed the error alone."""
    calls = [call["function"]["name"] for call in message.get("tool_calls") or []]
    said = message["role"] == "assistant" and f"'name': '{tool}'" in _text(message)
    return (tool in calls or said) + _text(message).count(f"Error executing tool '{tool}'")


def _call(tool: str, arguments: dict[str, Any], number: int) -> tuple[dict[str, Any], str]:
    function = {"name": tool, "arguments": json.dumps(arguments)}
    call = {"id": f"call_{number:04d}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
