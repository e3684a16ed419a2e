"""Agents that do next to nothing, their tasks and graders: one call, or as many as generation is to take."""

from __future__ import annotations

import http.client
import json
import os
from typing import Any
from urllib.parse import urlsplit

TASKS = 256


def run(task: dict[str, Any]) -> str:
    """Returns at once: what is left is what a rollout costs around the agent."""
    return ask(task["question"])


def letters(task: dict[str, Any]) -> str:
    """So many calls as `CALLS` says."""
    return "".join(ask(task["question"], max_tokens=24) for _ in range(int(os.environ["CALLS"])))


def ask(question: str, **more: Any) -> str:
    """One call, with no client library around it."""
    base = urlsplit(os.environ["OPENAI_BASE_URL"])
    connection = http.client.HTTPConnection(str(base.hostname), base.port, timeout=600)
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": question}], **more})
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    connection.request("POST", f"{base.path}/chat/completions", body, headers)
    reply = json.loads(connection.getresponse().read())
    connection.close()
    return str(reply["choices"][0]["message"]["content"])


def tasks() -> list[dict[str, Any]]:
    return [{"id": f"t{number}", "question": f"What is {number}?"} for number in range(TASKS)]


def grade(task: dict[str, Any], output: Any, spans: list[dict[str, Any]]) -> float:
    return (hash(spans[0]["span_id"]) % 100) / 100


def grade_letters(task: dict[str, Any], output: Any, spans: list[dict[str, Any]]) -> float:
    """The share of lower-case letters, which a policy learns within a few epochs."""
    return sum(c.islower() for c in str(output)) / max(len(str(output)), 1)
