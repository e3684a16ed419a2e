"""Messages of a call as they are shown: who says what, and which of them an earlier call showed already."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Message:
    role: str
    text: str
    tool_calls: list[tuple[str, str]] = field(default_factory=list)  # name, arguments
    name: str | None = None  # of the tool that answers


def json_or_text(recorded: str | None) -> Any:
    """Read JSON as what it says, other text as it is."""
    try:
        return None if recorded is None else json.loads(recorded)
    except ValueError:
        return recorded


def messages_of(recorded: str | None) -> list[Message]:
    """Read recorded messages; what is no list of messages is shown as it is."""
    if not recorded:
        return []
    found = json_or_text(recorded)
    if not isinstance(found, list):
        return [Message("text", recorded)]
    return [_message(one) for one in found]


def new_messages(messages: list[Message], shown: list[Message]) -> tuple[int, list[Message]]:
    """Return how many messages at the beginning are those of an earlier call, and the others (at least the last)."""
    same = 0
    for one, other in zip(messages, shown, strict=False):
        if one != other:
            break
        same += 1
    same = min(same, max(len(messages) - 1, 0))
    return same, messages[same:]


def _message(one: Any) -> Message:
    if not isinstance(one, dict):
        return Message("text", _text(one))
    asked = one.get("tool_calls")
    functions = [_function(call) for call in asked] if isinstance(asked, list) else []
    calls = [(str(function.get("name", "?")), _text(function.get("arguments", ""))) for function in functions]
    content = one.get("content", one.get("parts"))
    return Message(str(one.get("role", "text")), _text(content), calls, one.get("name") or one.get("tool_call_id"))


def _function(call: Any) -> dict[str, Any]:
    """Return what a tool call says of its function, in it or beside; nothing where it is none."""
    found = call.get("function") or call if isinstance(call, dict) else None
    return found if isinstance(found, dict) else {}


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "\n".join(str(part.get("text", part.get("content", json.dumps(part)))) for part in content)
    return json.dumps(content, ensure_ascii=False)
