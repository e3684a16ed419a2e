"""An agent with the plain openai client, for end-to-end tests: one question, one answer. Imports nothing of ours."""

import os
import time
from typing import Any

from openai import OpenAI


def run(task: dict[str, Any]) -> str:
    print("asked", task["id"], flush=True)  # an attempt that prints leaves a log, which tests count
    time.sleep(float(os.environ.get("LETTER_PAUSE", "0")))
    if task.get("crash"):
        raise RuntimeError("this task is one that the agent cannot do")
    reply = OpenAI().chat.completions.create(
        model=os.environ["LIGHTNING_MODEL"],
        messages=[{"role": "user", "content": task["question"]}],
        max_tokens=8,
    )
    return reply.choices[0].message.content or ""


def grade(task: dict[str, Any], output: Any, spans: list[dict[str, Any]]) -> float:
    """The share of lower-case letters: an untrained model's answers differ in it, so groups have spread."""
    assert any(span["op"] == "llm" for span in spans), "the attempt's own spans are there"
    text = str(output)
    return sum(c.islower() for c in text) / max(len(text), 1)


def train_tasks() -> list[dict[str, Any]]:
    return [{"id": f"t{i}", "question": f"Say {i}", "crash": i == 3} for i in range(8)]


def heldout_tasks() -> list[dict[str, Any]]:
    return [{"id": f"h{i}", "question": f"Tell {i}"} for i in range(4)]
