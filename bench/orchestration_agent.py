"""An agent that returns at once, its tasks and its grader: what is left is what a rollout costs around the agent."""

from __future__ import annotations

import http.client
import json
import os
from typing import Any
from urllib.parse import urlsplit

TASKS = 256


def run(task: dict[str, Any]) -> str:
    """One call, with no client library around it."""
    base = urlsplit(os.environ["OPENAI_BASE_URL"])
    connection = http.client.HTTPConnection(str(base.hostname), base.port, timeout=60)
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": task["question"]}]})
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    connection.request("POST", f"{base.path}/chat/completions", body, headers)
    reply = json.loads(connection.getresponse().read())
    connection.close()
    return str(reply["choices"][0]["message"]["content"])


def tasks() -> list[dict[str, Any]]:
    return [{"id": f"t{number}", "question": f"What is {number}?"} for number in range(TASKS)]


def grade(task: dict[str, Any], output: Any, spans: list[dict[str, Any]]) -> float:
    return (hash(spans[0]["span_id"]) % 100) / 100
