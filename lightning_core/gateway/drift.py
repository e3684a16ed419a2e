"""Token drift: a client sends a sampled reply back as text, and the text becomes other tokens than were sampled.

The rule is that of sql/triplets/token_drifts.sql, which decides what is trained on; here it is seen while the rollout runs,
from a bounded memory of replies. Nothing is rewritten.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

_MOST_TOKENS = 16_000_000  # four bytes each
_REPLY_TOKENS = 64  # what a reply takes beside its tokens, in tokens

Key = tuple[str, str, str]  # rollout, attempt, policy


@dataclass(frozen=True, slots=True)
class Drift:
    position: int  # first token of the later prompt that differs, counted from 0
    tokens: int  # how many sampled tokens came otherwise
    response_id: str | None  # of the reply that came back


@dataclass(frozen=True, slots=True)
class _Reply:
    prompt: array[int]
    response: array[int]
    response_id: str | None

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.response) + _REPLY_TOKENS


class DriftMemory:
    """The replies of attempts; the attempts longest unused are forgotten first. For one thread."""

    def __init__(self, most_tokens: int = _MOST_TOKENS) -> None:
        self._most = most_tokens
        self._size = 0
        self._attempts: OrderedDict[Key, dict[int, _Reply]] = OrderedDict()

    def compare(self, key: Key, messages: Any, prompt: Sequence[int]) -> Drift | None:
        """How `prompt` departs from the reply that `messages` send back; None where it does not, or none is known."""
        replies = self._attempts.get(key)
        if not replies or not isinstance(messages, list):
            return None
        last = max(
            (i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "assistant"), default=-1
        )
        reply = replies.get(_digest(messages[: last + 1])) if last >= 0 else None
        return None if reply is None else _departure(reply, _ids(prompt))

    def remember(
        self,
        key: Key,
        messages: Any,
        replies: Sequence[tuple[dict[str, Any], Sequence[int]]],
        prompt: Sequence[int],
        response_id: str | None,
    ) -> None:
        """Keep the replies, (message, ids) a choice, to `messages`."""
        if not isinstance(messages, list):
            return
        kept = self._attempts.setdefault(key, {})
        self._attempts.move_to_end(key)
        ids = _ids(prompt)
        for message, response in replies:
            reply = _Reply(ids, _ids(response), response_id)
            digest = _digest([*messages, {"role": "assistant"} | message])
            former = kept.pop(digest, None)  # the same words again: the later ones count
            kept[digest] = reply
            self._size += reply.size - (former.size if former else 0)
        while self._size > self._most and self._attempts:
            _, gone = self._attempts.popitem(last=False)
            self._size -= sum(reply.size for reply in gone.values())


def _ids(tokens: Sequence[int]) -> array[int]:
    return tokens if isinstance(tokens, array) else array("i", tokens)


def _departure(reply: _Reply, later: array[int]) -> Drift | None:
    start, response = len(reply.prompt), reply.response
    if later[:start] != reply.prompt:
        return None  # the prompt was rewritten, or drifted earlier: not this reply's tokens
    rest = later[start:]
    if rest[: len(response)] == response:
        return None
    agree = next((i for i, (a, b) in enumerate(zip(response, rest, strict=False)) if a != b), len(rest))
    sampled, came = response[agree:], rest[agree:]
    # The reply's end in the later prompt is taken to be where its last token next stands.
    came = came[: came.index(sampled[-1]) + 1] if sampled[-1] in came else came[:0]
    alike = 0
    while alike < min(len(sampled), len(came)) and sampled[-1 - alike] == came[-1 - alike]:
        alike += 1
    return Drift(start + agree, len(sampled) - alike, reply.response_id)


def _digest(messages: list[Any]) -> int:
    """The same for messages of the same role, text, and tool calls, however a client writes them down.

    Python's own hash of bytes (keyed, 64 bits): hashlib would let go of the interpreter's lock, and wait for it.
    """
    return hash(orjson.dumps([_plain(message) for message in messages]))


def _plain(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    calls = message.get("tool_calls")
    named = [call.get("function") or {} for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [
        message.get("role"),
        _joined(message.get("content")),
        [[function.get("name"), function.get("arguments")] for function in named if isinstance(function, dict)],
    ]


def _joined(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    return content or ""
