"""An agent of OpenAI's Agents SDK that searches passages, several times where it has to, and answers."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_api
from agents.exceptions import MaxTurnsExceeded
from index import Passages

SAYS = (
    "Answer the question. Search the passages first; one search finds one fact, so search again for the next.\n"
    "End with the answer alone, in a few words, as <answer>…</answer>."
)
MOST_TURNS = 6
PASSAGES = int(os.environ.get("MUSIQUE_PASSAGES", "4"))  # a search finds so many

passages = Passages(Path(os.environ["LIGHTNING_DATA"]) / "musique_corpus.json")


@function_tool
def search(query: str) -> str:
    """Search the passages.

    Args:
        query: what to look for, in a few words
    """
    return "\n".join(f"{found['title']}: {found['text'][:600]}" for found in passages.search(query, PASSAGES))


def researcher() -> Agent:
    settings = ModelSettings(temperature=0, max_tokens=96)
    return Agent(name="researcher", instructions=SAYS, model="policy", model_settings=settings, tools=[search])


async def run(task: dict[str, Any]) -> str | None:
    set_default_openai_api("chat_completions")
    try:
        return (await Runner.run(researcher(), task["question"], max_turns=MOST_TURNS)).final_output
    except MaxTurnsExceeded:
        return None


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
