"""An agent of OpenAI's Agents SDK that searches passages, several times where it has to, and answers."""

import asyncio
import json
import os
import sys
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_api
from agents.exceptions import MaxTurnsExceeded

SAYS = (
    "Answer the question. Search the passages first; one search finds one fact, so search again for the next.\n"
    "End with the answer alone, in a few words, as <answer>…</answer>."
)
MOST_TURNS = 6
PASSAGES = int(os.environ.get("MUSIQUE_PASSAGES", "4"))  # a search finds so many
SEARCH = os.environ.get("MUSIQUE_SEARCH", "http://127.0.0.1:8899/search")  # serve.py


@function_tool
async def search(query: str) -> str:
    """Search the passages.

    Args:
        query: what to look for, in a few words
    """
    found = await asyncio.to_thread(passages, query)
    return "\n".join(f"{one['title']}: {one['text'][:600]}" for one in found)


def passages(query: str) -> list[dict[str, str]]:
    with urlopen(f"{SEARCH}?{urlencode({'query': query, 'most': PASSAGES})}", timeout=60) as reply:
        return json.load(reply)  # type: ignore[no-any-return]


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
