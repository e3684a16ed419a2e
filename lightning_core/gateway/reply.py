"""The token ids, logprobs and text of a reply: collected for the span, removed for the client.

Both shapes vLLM answers with pass through here: one JSON body, or the chunks of a stream. Streams carry the prompt
ids in their first chunk and `token_ids` with each delta; a chunk that has ids but an empty delta exists only because
ids were asked for, and the client does not get it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from lightning_core.gateway.sampling import Prepared

T = TypeVar("T")

_MOST_TOOL_CALLS = 1024  # of a message
_LEAST_CHOICES = 128  # that are taken, whatever was asked for: some APIs count from one


@dataclass(slots=True)
class Choice:
    """One choice of the reply, as far as it has come."""

    token_ids: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    finish_reason: str | None = None
    message: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Collected:
    """Everything of a reply that the span keeps."""

    response_id: str | None = None
    model: str | None = None
    prompt_token_ids: array[int] | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None  # `system_fingerprint`
    error: str | None = None  # of an error chunk in the stream

    def choice(self, index: int) -> Choice:
        return self.choices.setdefault(index, Choice())

    def ordered(self) -> list[Choice]:
        return [self.choices[index] for index in sorted(self.choices)]

    def begun(self) -> bool:
        """Return whether anything was sampled yet: a stream begins with a chunk that has the role alone."""
        return any(choice.token_ids or len(choice.message) > 1 for choice in self.choices.values())

    def tokens(self, kind: str) -> int:
        """Return how many `prompt` or `completion` tokens there are: as reported, else as collected."""
        reported = self.usage.get(f"{kind}_tokens")
        if isinstance(reported, int) and reported >= 0:
            return reported
        if kind == "prompt":
            return len(self.prompt_token_ids or ())
        return sum(len(choice.token_ids) for choice in self.choices.values())

    def finished(self) -> int:
        return sum(choice.finish_reason is not None for choice in self.choices.values())


def error_in(reply: dict[str, Any]) -> str | None:
    """Return what failed, where a reply or a chunk of one is an error although its status was 200.

    `"error": null` is none.
    """
    error = reply.get("error")
    if error is None or reply.get("choices") or reply.get("data"):
        return None
    return str((error.get("message") if isinstance(error, dict) else None) or error)


def take_reply(reply: dict[str, Any], prepared: Prepared, name: str, into: Collected) -> dict[str, Any]:
    """Collect a whole reply, and change it into the client's (`name` is the model it asked for)."""
    _take_head(reply, prepared, name, into)
    for raw in _choices(reply):
        choice = into.choice(_place(raw.get("index") or 0, max(prepared.choices, _LEAST_CHOICES), "choice"))
        _take_choice(raw, prepared, choice, into)
        if prepared.kind == "chat":
            choice.message = _writable(_of_type(raw.get("message"), dict) or {})
            if prepared.hides_reasoning and "reasoning" in choice.message:
                raw["message"] = choice.message | {"reasoning": None}
        else:
            choice.message = {"role": "assistant", "content": raw.get("text", "")}
    return reply


def take_chunk(chunk: dict[str, Any], prepared: Prepared, name: str, into: Collected) -> dict[str, Any] | None:
    """Collect a chunk, and change it into the client's; None where the client must not get it."""
    if (error := error_in(chunk)) is not None:
        into.error = error
        return None
    _take_head(chunk, prepared, name, into)
    choices = _choices(chunk)
    if not choices:
        return chunk if prepared.wants_usage or not chunk.get("usage") else None
    for raw in choices:
        choice = into.choice(_place(raw.get("index") or 0, max(prepared.choices, _LEAST_CHOICES), "choice"))
        had_ids = raw.get("token_ids") is not None
        _take_choice(raw, prepared, choice, into)
        if prepared.kind == "completions":
            choice.message.setdefault("role", "assistant")
            choice.message["content"] = choice.message.get("content", "") + (raw.get("text") or "")
            continue
        delta = _of_type(raw.get("delta"), dict) or {}
        _add_delta(choice.message, delta)
        if prepared.hides_reasoning:
            delta.pop("reasoning", None)
        only_ids = had_ids and not delta and raw.get("finish_reason") is None
        if only_ids and len(choices) == 1 and not (prepared.wants_logprobs or prepared.wants_token_ids):
            return None
    return chunk


def finishes(chunk: dict[str, Any]) -> bool:
    """Return whether it is the last chunk of a choice."""
    return any(choice.get("finish_reason") is not None for choice in _choices(chunk))


def stamp(chunk: dict[str, Any], prepared: Prepared, collected: Collected) -> dict[str, Any]:
    """Return the chunk; if nobody asks for usage, a choice's last one gets the fingerprint, which came with the usage.

    Only that chunk has it then.
    """
    if collected.fingerprint is not None and not prepared.wants_usage and finishes(chunk):
        chunk.setdefault("system_fingerprint", collected.fingerprint)
    return chunk


def _choices(reply: dict[str, Any]) -> list[dict[str, Any]]:
    choices = reply.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _of_type(value: Any, kind: type[T]) -> T | None:
    """Return `value`, or raise TypeError: what goes into the span has to be what it is for."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{str(value)[:50]!r} came where vLLM has a {kind.__name__}")
    return value


def _writable(value: T) -> T:
    """Return `value`, or raise TypeError where it is nested too deeply for the span: orjson reads deeper than it writes."""
    orjson.dumps([[[[[value]]]]])  # so much is around it in a message, and in the lists of those
    return value


def _place(index: Any, most: int, what: str) -> int:
    """Return `index`, or raise ValueError: memory is taken for as many as it says."""
    if not isinstance(index, int) or not 0 <= index < most:
        raise ValueError(f"a {what} has the index {str(index)[:50]}, of at most {most}")
    return index


def _take_head(reply: dict[str, Any], prepared: Prepared, name: str, into: Collected) -> None:
    into.response_id = _of_type(reply.get("id"), str) or into.response_id
    into.model = _of_type(reply.get("model"), str) or into.model
    into.usage = _of_type(reply.get("usage"), dict) or into.usage
    into.fingerprint = _of_type(reply.get("system_fingerprint"), str) or into.fingerprint
    _take_prompt(reply, prepared, into)
    reply["model"] = name


def _take_prompt(holder: dict[str, Any], prepared: Prepared, into: Collected) -> None:
    """Take the prompt ids, which are on the reply (chat) or on each choice (completion)."""
    ids = holder.get("prompt_token_ids")
    if ids is not None and into.prompt_token_ids is None:
        into.prompt_token_ids = array("i", ids)
    if not prepared.wants_token_ids and "prompt_token_ids" in holder:
        holder["prompt_token_ids"] = None  # as vLLM has it where nobody asks


def _take_choice(raw: dict[str, Any], prepared: Prepared, choice: Choice, into: Collected) -> None:
    _take_prompt(raw, prepared, into)
    ids = raw.get("token_ids") or []
    logprobs = _sampled_logprobs(raw.get("logprobs"))
    choice.token_ids.extend(ids)
    choice.logprobs.extend(logprobs[-len(ids) :] if ids else [])  # an echoed prompt has logprobs too, in front
    choice.finish_reason = _of_type(raw.get("finish_reason"), str) or choice.finish_reason
    if not prepared.wants_token_ids and "token_ids" in raw:
        raw["token_ids"] = None
    if not prepared.wants_logprobs and "logprobs" in raw:
        raw["logprobs"] = None


def _sampled_logprobs(logprobs: Any) -> list[float]:
    """Return the sampled tokens' logprobs, of the chat shape (`content`) or the completion shape (`token_logprobs`)."""
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if content is not None:
        return [entry["logprob"] for entry in content]
    values = logprobs.get("token_logprobs") or []
    return [float("nan") if value is None else value for value in values]


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Put a delta onto the message so far, as the OpenAI clients do."""
    for key, value in delta.items():
        if value is None:
            continue
        if key == "tool_calls":
            for part in value:
                _add_tool_call(message.setdefault("tool_calls", []), part)
        elif isinstance(value, str) and key != "role":
            message[key] = message.get(key, "") + value
        else:
            message[key] = _writable(value)


def _add_tool_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    index = _place(part.get("index", len(calls)), _MOST_TOOL_CALLS, "tool call")
    while len(calls) <= index:
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    more = {key: value for key, value in part.items() if key not in ("function", "index") and value is not None}
    call |= _writable(more)
    for key, value in (part.get("function") or {}).items():
        if value is not None:
            call["function"][key] = call["function"].get(key, "") + value
