"""Chats in OpenAI's format for finetuning (JSONL) as rollouts: every reply in them is a call, with all that was said before it.

A line holds `messages`, and `tools` where the assistant had any. A reply with `weight: 0` is context and no example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from lightning_core import names
from lightning_core.epoch.imported import BadPart, Imported, group_of
from lightning_core.otlp.spans import SpanData

_ROLES = ("system", "developer", "user", "assistant", "tool")
_LONGEST = 4 << 20  # bytes of a line, about a million tokens; each of its calls repeats what came before
_CALL_NS = 1_000_000  # a chat has no times: its calls follow each other


def read_chats(file: Path, now_ns: int) -> Iterator[Imported | BadPart]:
    """Yield the chats of a file, line by line, or the reason why a line is no chat. Chats begin at `now_ns`."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                if len(line) > _LONGEST:
                    raise ValueError(
                        f"longer than {_LONGEST >> 20} MiB; no policy reads such a chat: cut it, or leave it out"
                    )
                yield _chat(line, now_ns)
            except ValueError as error:
                yield BadPart(f"{file}:{number}", str(error))


def _chat(line: bytes, now_ns: int) -> Imported:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error}); write one chat a line") from None
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        raise ValueError('no list `messages`; a line is {"messages": [{"role": …, "content": …}, …], "tools": […]}')
    tools = found.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError("`tools` is no list of objects; write the tools as they were given to the assistant")
    messages = [_message(n, one) for n, one in enumerate(found["messages"])]
    trained = [n for n, one in enumerate(messages) if n and one["role"] == "assistant" and one.get("weight") != 0]
    if not trained:
        raise ValueError(
            "no reply to learn from; it needs a message of the role `assistant` behind another, of a weight above 0"
        )
    said = [{key: value for key, value in one.items() if key != "weight"} for one in messages]
    content = json.dumps([messages, tools], sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    spans = [_call(digest, now_ns + i * _CALL_NS, said[:n], said[n], tools) for i, n in enumerate(trained)]
    question = next((one.get("content") for one in said if one["role"] == "user"), None)
    end_ns, groups = spans[-1].end_ns, [group_of(spans)]
    return Imported(
        f"chat-{digest[:32]}",
        digest[:32],
        now_ns,
        end_ns,
        groups,
        task=json.dumps({"prompt": question}),
        output=json.dumps(said[-1]),
    )


def _message(number: int, message: Any) -> dict[str, Any]:
    """Check a message and return it. Raises ValueError, naming the message by its number from 0 on, for what no chat
    template would take."""
    where = f"messages[{number}]"
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise ValueError(f"{where}: its role is none of {', '.join(_ROLES)}")
    if "function_call" in message:
        raise ValueError(
            f"{where}: `function_call` is the older format; write `tool_calls`, and `role: tool` for the result"
        )
    calls = message.get("tool_calls")
    if not isinstance(calls, list | None):
        raise ValueError(f"{where}: `tool_calls` is no list")
    if message.get("content") is None and not calls:
        raise ValueError(f"{where}: neither `content` nor `tool_calls`")
    if not isinstance(message.get("content"), str | list | None):
        raise ValueError(f"{where}: `content` is no text and no list of parts")
    for part in message["content"] if isinstance(message.get("content"), list) else ():
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise ValueError(f"{where}: a part of `content` is no text; only texts are trained on")
    for call in calls or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where}: a tool call without `function.name`")
        if not _is_json_object(function.get("arguments", "{}")):
            raise ValueError(f"{where}: the arguments of {function['name']} are no JSON object in a string")
    return message


def _is_json_object(text: Any) -> bool:
    try:
        return isinstance(orjson.loads(text) if isinstance(text, str) else text, dict)
    except orjson.JSONDecodeError:
        return False


def _call(digest: str, start_ns: int, asked: list[Any], answered: Any, tools: Any) -> SpanData:
    span_id = hashlib.sha256(f"{digest}/{len(asked)}".encode()).hexdigest()[:16]
    return SpanData(
        name=f"{names.SPAN_CALL_PREFIX}demonstration",
        start_ns=start_ns,
        end_ns=start_ns + _CALL_NS,
        trace_id=digest[:32],
        span_id=span_id,
        attributes={
            names.GEN_AI_OPERATION: "chat",
            names.GEN_AI_INPUT_MESSAGES: orjson.dumps(asked).decode(),
            names.GEN_AI_OUTPUT_MESSAGES: orjson.dumps([answered]).decode(),
            names.GEN_AI_TOOLS: orjson.dumps(tools).decode() if tools else None,
        },
        status="ok",
    )
