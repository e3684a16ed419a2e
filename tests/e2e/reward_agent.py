"""An agent that is a command, reads its task from stdin, uses two model names, and gives its own reward."""

import json
import sys

from openai import OpenAI

from lightning_core.client import emit_reward, span


def main() -> None:
    task = json.load(sys.stdin)
    client = OpenAI()
    question = [{"role": "user", "content": task["question"]}]
    with span("writer", **{"gen_ai.agent.name": "writer"}):
        written = client.chat.completions.create(model="writer", messages=question, max_tokens=8)  # type: ignore[arg-type]
    with span("critic", **{"gen_ai.agent.name": "critic"}):
        client.chat.completions.create(model="critic", messages=question, max_tokens=4)  # type: ignore[arg-type]
    text = written.choices[0].message.content or ""
    emit_reward(sum(c.islower() for c in text) / max(len(text), 1))
    print("thinking aloud")
    print(json.dumps({"text": text}))


main()
