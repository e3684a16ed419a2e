"""A canned model that says Sir once a prompt asks for it, and writes that prompt: for tests of the search for prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e import without_vllm

AGENT = Path(__file__).parent / "prompted_agent.py"
BETTER = "Be polite."


class Polite(without_vllm.Model):
    def text(self, asked: dict[str, Any]) -> str:
        texts = [str(message["content"]) for message in asked["messages"]]
        if "write a new instruction" in texts[-1]:
            return self.instruction(texts[-1])
        return self.answer(texts[0] == BETTER)

    def answer(self, polite: bool) -> str:
        return "Sir, yes" if polite else "yes"

    def instruction(self, asked: str) -> str:
        """What it answers where it is shown how the tasks went."""
        return f"They want to be addressed.\n```\n{BETTER}\n```"
