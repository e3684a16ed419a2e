"""The versions of prompts that a rollout is served, in a file of the home by their digest: `prompts/.served/<digest>.json`.

A rollout's token names the digest, so the gateway finds what it is to serve that rollout also after a restart, and rollouts beside
each other may have versions of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lightning_core.config.prompts import PromptSettings
from lightning_core.files import write_atomic
from lightning_core.prompts.store import PromptError, PromptStore, digest

_DIGITS = 16
_DIGEST = re.compile(r"[0-9a-f]{16}")


class ServedPrompt(BaseModel):
    """A version of a prompt, and how the gateway knows that a call has another: by `seeds` (texts of its file) and `match`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: str
    text: str
    seeds: tuple[str, ...]
    match: str | None


class PromptSet(BaseModel):
    """Prompt → the version that a rollout is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompts: dict[str, ServedPrompt]

    @classmethod
    def of(cls, home: Path, settings: Mapping[str, PromptSettings], versions: Mapping[str, str]) -> PromptSet:
        """Return the set of these versions (prompt → version). Raises PromptError where one is not there."""
        found = {}
        for name, version in sorted(versions.items()):
            store = PromptStore(home, name)
            text = store.version(version).text
            found[name] = ServedPrompt(
                version=version, text=text, seeds=tuple(store.seeds()), match=settings[name].match
            )
        return cls(prompts=found)

    @property
    def versions(self) -> dict[str, str]:
        return {name: prompt.version for name, prompt in self.prompts.items()}

    @cached_property
    def digest(self) -> str:
        return digest(self.model_dump_json())[:_DIGITS]

    def delivered(self) -> dict[str, dict[str, str]]:
        """Return the set as the agent gets it: `{"writer": {"version": "p0001", "text": …}}`."""
        return {name: {"version": prompt.version, "text": prompt.text} for name, prompt in self.prompts.items()}

    def keep(self, home: Path) -> None:
        """Write it where the gateway finds it by its digest."""
        file = _file(home, self.digest)
        if not file.is_file():
            write_atomic(file, self.model_dump_json().encode())


def read_set(home: Path, of: str) -> PromptSet:
    """Return the set with this digest. Raises PromptError where it is not there or is not what was written."""
    file = _file(home, of)
    try:
        found = PromptSet.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise PromptError(f"{file}: the prompts of a rollout cannot be read ({error})") from None
    if found.digest != of:
        raise PromptError(f"{file}: the prompts of a rollout are not those that were written")
    return found


def _file(home: Path, of: str) -> Path:
    if not _DIGEST.fullmatch(of):
        raise PromptError(f"{of!r:.40} is no digest of prompts")
    return home / "prompts" / ".served" / f"{of}.json"
