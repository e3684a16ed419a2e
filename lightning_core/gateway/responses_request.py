"""OpenAI's Responses API as chat: what `/v1/responses` is asked becomes one chat completion.

vLLM has a `/v1/responses` of its own, which gives no token ids in a stream, no logprobs of tool calls, and forgets tool
calls of a `previous_response_id`; so the gateway asks it for chat, and a call is the same span whichever API it came by.
What stands for one sampled message (reasoning, text, function calls) becomes one message again: the chat template
then sees what it would see from a client of chat completions.
"""

from __future__ import annotations

from typing import Any

from lightning_core.gateway.http import HttpError, invalid

Message = dict[str, Any]

# Answered by the gateway or meant for OpenAI's own service; everything else goes on as it is (top_p, top_k, seed, …).
_OWN = frozenset(
    (
        *("input", "instructions", "previous_response_id", "tools", "tool_choice", "text", "reasoning", "include"),
        *("max_output_tokens", "top_logprobs", "store", "metadata", "truncation", "background", "conversation"),
        *("prompt", "max_tool_calls", "service_tier", "stream_options", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "context_management", "return_token_ids", "messages", "logprobs", "n"),
    )
)
_UNSUPPORTED = ("background", "conversation", "prompt")
_LOGPROBS = "message.output_text.logprobs"


def to_chat(request: dict[str, Any], history: list[Message]) -> tuple[dict[str, Any], list[Message]]:
    """Return (the chat request, the messages of it that this request adds to the history); HttpError 400."""
    for key in _UNSUPPORTED:
        if request.get(key):
            raise HttpError(400, f"`{key}` is not supported here", code="unsupported_parameter", param=key)
    added = to_messages(request.get("input"))
    instructions = request.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise invalid("instructions", "`instructions` has to be a string")
    chat = {key: value for key, value in request.items() if key not in _OWN}
    chat["messages"] = [*([{"role": "system", "content": instructions}] if instructions else []), *history, *added]
    if request.get("tools"):
        chat["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(_list(request["tools"], "tools"))]
        chat["tool_choice"] = _tool_choice(request.get("tool_choice"))
    else:
        chat.pop("parallel_tool_calls", None)
    if (response_format := _response_format(request.get("text"))) is not None:
        chat["response_format"] = response_format
    reasoning = request.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    if request.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = request["max_output_tokens"]
    include = request.get("include")
    if isinstance(include, list) and _LOGPROBS in include:
        chat["logprobs"] = True
        if request.get("top_logprobs"):
            chat["top_logprobs"] = request["top_logprobs"]
    return chat, added


def to_messages(given: Any) -> list[Message]:
    """Return the chat messages of `input`; HttpError 400 for what has no counterpart in chat."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    open_message: Message | None = None  # the assistant's, which more items may belong to
    for index, item in enumerate(_list(given, "input")):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise invalid(where, f"`{where}` has to be an object")
        kind = item.get("type", "message")
        if kind == "message" and item.get("role") != "assistant":
            messages.append({"role": _text(item, "role", where), "content": _content(item.get("content"), where)})
            open_message = None
        elif kind == "function_call_output":
            content = _content(item.get("output"), where)
            messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": content})
            open_message = None
        elif kind in ("message", "reasoning", "function_call"):
            if open_message is None or not _continues(open_message, kind):
                open_message = {"role": "assistant", "content": None}
                messages.append(open_message)
            _extend(open_message, item, kind, where)
        else:
            raise invalid(f"{where}.type", f"`{where}`: items of type {kind!r} are not supported here")
    return messages


def _continues(message: Message, kind: str) -> bool:
    """Return whether an item of this kind can belong to what `message` was sampled with.

    The order is reasoning, then text, then calls.
    """
    if kind == "reasoning":
        return False
    return kind == "function_call" or (message["content"] is None and "tool_calls" not in message)


def _extend(message: Message, item: dict[str, Any], kind: str, where: str) -> None:
    if kind == "message":
        message["content"] = _joined(item.get("content"), f"{where}.content")
    elif kind == "reasoning":
        said = "content" if item.get("content") else "summary"
        message["reasoning"] = _joined(item.get(said) or [], f"{where}.{said}")
    else:
        function = {"name": _text(item, "name", where), "arguments": _text(item, "arguments", where)}
        call = {"id": _text(item, "call_id", where), "type": "function", "function": function}
        message.setdefault("tool_calls", []).append(call)


def _joined(parts: Any, where: str) -> str:
    """Return the text of what may be a string or a list of parts."""
    if isinstance(parts, str):
        return parts
    for i, part in enumerate(_list(parts, where)):
        if not isinstance(part, dict):
            raise invalid(f"{where}[{i}]", f"`{where}[{i}]` has to be an object")
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)


def _content(content: Any, where: str) -> Any:
    """Return the content of a message or a tool's output, with chat's parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{where}.content", f"`{where}`: its content has to be a string or a list of parts")
    return [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]


def _part(part: Any, where: str) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": _text(part, "text", where)}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"]} | detail}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise invalid(where, f"`{where}`: parts of type {kind!r} are not supported here")


def _tool(tool: Any, where: str) -> Message:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise invalid(f"{where}.type", f"`{where}`: tools of type {kind!r} are not supported here, only functions")
    keys = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {key: tool[key] for key in keys if tool.get(key) is not None}}


def _tool_choice(choice: Any) -> Any:
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": _text(choice, "name", "tool_choice")}}
    kind = choice.get("type") if isinstance(choice, dict) else choice
    raise invalid("tool_choice", f"`tool_choice` {kind!r} is not supported here")


def _response_format(text: Any) -> Any:
    wanted = text.get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict) or wanted.get("type", "text") == "text":
        return None
    if wanted["type"] == "json_schema":
        keys = ("name", "schema", "strict", "description")
        return {"type": "json_schema", "json_schema": {key: wanted[key] for key in keys if wanted.get(key) is not None}}
    return {"type": wanted["type"]}


def _list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(param, f"`{param}` has to be a list" + (" or a string" if param.startswith("input") else ""))
    return value


def _text(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise invalid(f"{where}.{key}", f"`{where}.{key}` has to be a string")
    return value
