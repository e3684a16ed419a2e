"""Replies of an OpenAI server, whole or streamed, as what two of them can be compared by."""

import json
from typing import Any

import httpx


def plain(answer: httpx.Response) -> list[dict[str, Any]]:
    """The reply, or the chunks of a stream, without what is another each time: how many tokens a chunk has, too."""
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    found = [json.loads(line) for line in lines] or [answer.json()]
    joined: list[dict[str, Any]] = []
    for reply in ({key: value for key, value in reply.items() if key not in ("id", "created")} for reply in found):
        before = joined[-1]["choices"] if joined else []
        if before and reply["choices"] and "role" not in before[0]["delta"]:
            before[0] = _joined(before[0], reply["choices"][0])
        else:
            joined.append(reply)
    return joined


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two deltas of a stream as the one that vLLM makes of both where it is read late."""
    more = {"delta": {"content": first["delta"].get("content", "") + second["delta"].get("content", "")}}
    if first.get("token_ids"):
        more["token_ids"] = first["token_ids"] + (second["token_ids"] or [])
    if first.get("logprobs"):
        more["logprobs"] = {
            "content": first["logprobs"]["content"] + (second["logprobs"] or {"content": []})["content"]
        }
    return first | second | more
