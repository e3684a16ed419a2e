"""Agents that have a prompt: one with its text in the code, and some that ask for it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from lightning_core.client import emit_reward, prompt

SEED = "You write stories."


def _ask(system: str, question: str) -> str:
    from openai import OpenAI

    messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    reply = OpenAI().chat.completions.create(model=os.environ["LIGHTNING_MODEL"], messages=messages)
    emit_reward(1.0)
    return str(reply.choices[0].message.content)


def unmodified(task: dict[str, Any]) -> str:
    return _ask(SEED, task["question"])


def asks(task: dict[str, Any]) -> dict[str, Any]:
    text = prompt("writer", who="Ann {what}", what="x")
    try:
        prompt("painter")
    except LookupError as error:
        return {"text": text, "unknown": str(error), "said": _ask(text, task["question"])}
    return {}


if __name__ == "__main__":
    with open(os.environ["LIGHTNING_PROMPTS"], encoding="utf-8") as file:
        json.dump(json.load(file), sys.stdout)
