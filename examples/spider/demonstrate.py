"""The same agent, shown how: its writer can say nothing but the gold query, so there is something to fine-tune on first.

vLLM's structured outputs do it: the model still samples the tokens, and they come with their ids as ever.
"""

from typing import Any

from traced import agent


def run(task: dict[str, Any]) -> str:
    gold = {"structured_outputs": {"choice": [task["query"].strip().rstrip(";")]}}
    agent.policy = agent.ChatOpenAI(model="policy", max_tokens=128, extra_body=gold)
    agent.MOST_TRIES = 1
    return agent.run(task)
