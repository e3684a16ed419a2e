"""An agent with a system message of its own, for tests of prompts: one question, one answer. Imports nothing of ours."""

import os
from typing import Any

from openai import OpenAI

SYSTEM = "You are a helpful assistant."


def run(task: dict[str, Any]) -> str:
    messages: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task["question"]}]
    reply = OpenAI().chat.completions.create(model=os.environ["LIGHTNING_MODEL"], messages=messages, max_tokens=8)
    return reply.choices[0].message.content or ""


def grade(task: dict[str, Any], output: Any, spans: Any) -> dict[str, Any]:
    polite = str(output).startswith("Sir")
    return {"reward": float(polite), "words": "polite" if polite else "it does not say Sir"}


def grade_with_form(task: dict[str, Any], output: Any, spans: Any) -> dict[str, Any]:
    """Likewise, with a tenth more for an exclamation mark, so that rollouts of one prompt differ."""
    graded = grade(task, output, spans)
    return graded | {"reward": graded["reward"] + 0.1 * str(output).endswith("!")}


def train_tasks() -> list[dict[str, Any]]:
    return [{"id": f"t{i}", "question": f"Say {i}"} for i in range(12)]


def heldout_tasks() -> list[dict[str, Any]]:
    return [{"id": f"h{i}", "question": f"Tell {i}"} for i in range(12)]
