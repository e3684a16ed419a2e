"""Prompts that a run versions and delivers to its agent."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from lightning_core.config.section import Section


class PromptSettings(Section):
    """A prompt of the agent: versioned in the home, recorded with every rollout, delivered to the agent (docs/prompts.md)."""

    file: Path = Field(
        description="file of the prompt that the agent has; its text is the first version. A relative path is tried from the working directory, then from the settings' folder"
    )
    agent_match: str | None = Field(
        None,
        description="regex searched in agents' names: the calls of these agents are what `optimize-prompts` improves the prompt by; null: all calls",
    )
    match: str | None = Field(
        None,
        description="for agents that fill the prompt in: a regex (Python's `re`); the gateway replaces what it finds in a call's system message, and fills `{NAME}` with the group `(?P<NAME>…)`",
    )

    @field_validator("match")
    @classmethod
    def _match(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            empty = re.compile(pattern).fullmatch("")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regex of Python's ({error})") from None
        if empty:
            raise ValueError(f"{pattern!r} matches an empty text, so it would be found in every system message")
        return pattern
