"""A chat reply as OpenAI's Responses API gives it: one object, or its typed events.

The order of events is OpenAI's: created, in_progress; for every output item added, its parts and deltas, done; then
completed (or incomplete). `sequence_number` counts them.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import orjson

from lightning_core.gateway.api_format import ApiFormat
from lightning_core.gateway.http import HttpError
from lightning_core.gateway.reply import Collected
from lightning_core.gateway.responses_store import ResponseStore, Turn

Item = dict[str, Any]

_ECHOED: dict[str, Any] = {  # what the response repeats of the request, and OpenAI's defaults
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}
_STREAMED = {"message": "output_text", "reasoning": "reasoning_text", "function_call": "function_call_arguments"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def new_response_id() -> str:
    return "resp_" + secrets.token_hex(24)


def as_items(given: Any) -> list[Item]:
    """Return the items of a request's `input`, each with an id."""
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    items = [{"type": "message"} | item for item in given]
    return [_with_parts(item) | {"id": item.get("id") or _new_id(item["type"])} for item in items]


def _with_parts(item: Item) -> Item:
    """Return the item with a message's text as the list of parts that stored messages have."""
    if item["type"] != "message" or not isinstance(item["content"], str):
        return item
    if item["role"] == "assistant":
        return item | {"status": "completed", "content": [_text_part("message", item["content"], [])]}
    return item | {"content": [{"type": "input_text", "text": item["content"]}]}


class ResponsesFormat(ApiFormat):
    """One response. `store` keeps it for `previous_response_id`, where the client did not say `store: false`."""

    def __init__(self, request: dict[str, Any], store: ResponseStore, turn: Turn) -> None:
        super().__init__("responses", turn.response_id)
        self._store = store if request.get("store") is not False else None
        self._turn = turn
        self._events = _Events()
        self._output: list[Item] = []
        self._open: _OpenItem | None = None
        self._object: dict[str, Any] = {
            "id": turn.response_id,
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": request["model"],
            "output": [],
            "usage": None,
            **{key: default if request.get(key) is None else request[key] for key, default in _ECHOED.items()},
        }
        self._whole = self._object  # the last state, for the store

    def reply(self, reply: dict[str, Any], collected: Collected) -> Any:
        choices = reply.get("choices") or [{}]
        message = choices[0].get("message") or {}
        reasoning = message.get("reasoning") or message.get("reasoning_content")
        if reasoning:
            self._output.append(_finish(_new("reasoning"), reasoning))
        if message.get("content") or not (reasoning or message.get("tool_calls")):
            logprobs = (choices[0].get("logprobs") or {}).get("content") or []
            self._output.append(_finish(_new("message"), message.get("content") or "", logprobs))
        for call in message.get("tool_calls") or []:
            item = _new("function_call") | {"call_id": call.get("id"), "name": call["function"]["name"]}
            self._output.append(_finish(item, call["function"].get("arguments") or ""))
        return self._completed(collected)

    def begin(self) -> bytes:
        return self._events("response.created", response=self._object) + self._events(
            "response.in_progress", response=self._object
        )

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        events = b""
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            if reasoning := delta.get("reasoning") or delta.get("reasoning_content"):
                events += self._add("reasoning", 0, {}, reasoning, [])
            if content := delta.get("content"):
                events += self._add("message", 0, {}, content, (choice.get("logprobs") or {}).get("content") or [])
            for part in delta.get("tool_calls") or []:
                function = part.get("function") or {}
                more = {"call_id": part.get("id"), "name": function.get("name")}
                events += self._add("function_call", part.get("index", 0), more, function.get("arguments") or "", [])
        return events

    def end(self, collected: Collected) -> bytes:
        events = self._close()
        if not self._output:
            events += self._add("message", 0, {}, "", []) + self._close()
        response = self._completed(collected)
        return events + self._events(f"response.{response['status']}", response=response)

    def broken(self, error: HttpError) -> bytes:
        # Both forms in use: the event's own fields, and `error`, at which OpenAI's client raises an APIError.
        shape = error.body["error"]
        fields = {"code": shape["code"], "message": shape["message"], "param": shape["param"]}
        return self._events("error", **fields, **error.body)

    def kept(self, collected: Collected) -> None:
        """Store the response, and the messages it adds to the conversation as they were sampled."""
        if self._store is None:
            return
        choices = collected.ordered()
        answered = choices[0].message if choices else {}
        # A stream's first chunk has an empty text, a whole reply of tool calls none: as a client would send it back.
        content = answered.get("content") or (None if answered.get("tool_calls") else "")
        message: dict[str, Any] = {"role": "assistant", "content": content}
        message |= {key: answered[key] for key in ("reasoning", "tool_calls") if answered.get(key)}
        self._store.put(self._turn, message, self._whole)

    def _completed(self, collected: Collected) -> dict[str, Any]:
        choices = collected.ordered()
        reason = _INCOMPLETE.get(choices[0].finish_reason or "") if choices else None
        self._whole = self._object | {
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "output": self._output,
            "usage": _usage(collected.usage),
        }
        return self._whole

    def _add(self, kind: str, number: int, more: dict[str, Any], delta: str, logprobs: list[Any]) -> bytes:
        """Put a delta to the open item, which is a new one where the kind or the number of the call changes."""
        events, item = b"", self._open
        if item is None or (item.kind, item.number) != (kind, number):
            events = self._close()
            self._open = item = _OpenItem(kind, number, _new(kind) | more, len(self._output))
            events += self._events("response.output_item.added", output_index=item.index, item=item.item)
            events += self._part(item, "added")
        if not delta:
            return events
        item.text += delta
        item.logprobs += logprobs
        shown = [{key: entry.get(key) for key in ("token", "logprob", "top_logprobs")} for entry in logprobs]
        with_them = {"logprobs": shown} if kind == "message" else {}
        return events + self._events(f"response.{_STREAMED[kind]}.delta", **item.where, delta=delta, **with_them)

    def _close(self) -> bytes:
        """Close the open item, and return the events that end it."""
        item, self._open = self._open, None
        if item is None:
            return b""
        whole: dict[str, Any] = {"text": item.text}
        if item.kind == "function_call":
            whole = {"name": item.item["name"], "arguments": item.text}
        elif item.kind == "message":
            whole["logprobs"] = item.logprobs
        events = self._events(f"response.{_STREAMED[item.kind]}.done", **item.where, **whole) + self._part(item, "done")
        done = _finish(item.item, item.text, item.logprobs)
        self._output.append(done)
        return events + self._events("response.output_item.done", output_index=item.index, item=done)

    def _part(self, item: _OpenItem, what: str) -> bytes:
        if item.kind == "function_call":
            return b""
        part = _text_part(item.kind, item.text, item.logprobs)
        return self._events(f"response.content_part.{what}", **item.where, part=part)


class _OpenItem:
    """An output item whose deltas are coming."""

    def __init__(self, kind: str, number: int, item: Item, index: int) -> None:
        self.kind, self.number, self.item, self.index = kind, number, item, index
        self.text = ""
        self.logprobs: list[Any] = []
        self.where = {"item_id": item["id"], "output_index": index}
        if kind != "function_call":
            self.where["content_index"] = 0


class _Events:
    def __init__(self) -> None:
        self._number = 0

    def __call__(self, kind: str, /, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


def _new(kind: str) -> Item:
    """Return an item that has nothing in it yet."""
    item: Item = {"id": _new_id(kind), "type": kind, "status": "in_progress"}
    if kind == "message":
        return item | {"role": "assistant", "content": []}
    return item | {"summary": [], "content": []} if kind == "reasoning" else item | {"arguments": ""}


def _new_id(kind: str) -> str:
    return _PREFIXES[kind] + secrets.token_hex(24)


def _finish(item: Item, text: str, logprobs: list[Any] | None = None) -> Item:
    if item["type"] == "function_call":
        return item | {"status": "completed", "arguments": text}
    return item | {"status": "completed", "content": [_text_part(item["type"], text, logprobs or [])]}


def _text_part(kind: str, text: str, logprobs: list[Any]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }
