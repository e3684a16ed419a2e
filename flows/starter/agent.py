"""The agent: it asks a model how to calculate the answer to a question. It knows nothing of training.

    echo '{"question": "…"}' | OPENAI_BASE_URL=… OPENAI_API_KEY=… python agent.py

In training, OPENAI_BASE_URL and OPENAI_API_KEY are those of the model that learns.
"""

import json
import sys

from openai import OpenAI

EXAMPLES = [
    {"role": "system", "content": "Write the calculation that solves the problem, and nothing else."},
    {"role": "user", "content": "Tom has 14 pens and loses 9 of them. How many pens does he have now?"},
    {"role": "assistant", "content": "14-9"},
    {"role": "user", "content": "7 boxes hold 6 eggs each. How many eggs are there?"},
    {"role": "assistant", "content": "7*6"},
]


def run(task: dict) -> str:
    """Return the calculation that the model writes for `task["question"]`."""
    question = {"role": "user", "content": task["question"]}
    reply = OpenAI().chat.completions.create(model="policy", messages=[*EXAMPLES, question], max_tokens=16)
    return reply.choices[0].message.content or ""


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
