"""Versions of a prompt on disk: `prompts/<name>/p0000.json`, `p0001.json`, …

Invariant: a file called `pNNNN.json` is complete and never changes. `p0000` is the seed: the file of the settings as it was first
read. `current` (what new epochs use), `best`, `pinned` (which `current` then stays at) and `file` (what the settings' file was when it
was last read) are small files that name a version; they are swapped by rename.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lightning_core.errors import LightningError
from lightning_core.files import locked, write_atomic
from lightning_core.home_format import require_readable

log = logging.getLogger(__name__)

SEED = "p0000"
Mark = Literal["current", "best", "pinned", "file"]
_EDIT = "edit of "
_VERSION = re.compile(r"p[0-9]{4,}")


class PromptError(LightningError):
    """A version of a prompt that is missing or damaged; the message names place and remedy."""


class PromptVersion(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    prompt: str
    version: str
    text: str
    digest: str  # of the text
    parent: str | None  # the version it was made from
    made_by: str  # in words: the file, a person, an optimizer
    created_ns: int


class PromptStore:
    """The versions of the prompt `name` under `home/prompts/<name>`."""

    def __init__(self, home: Path, name: str) -> None:
        """Raise HomeError for a home of a newer version."""
        require_readable(home)
        self.name = name
        self.folder = home / "prompts" / name

    def versions(self) -> list[str]:
        """Return the prompt's versions, oldest first."""
        found = [file.stem for file in self.folder.glob("p*.json") if _VERSION.fullmatch(file.stem)]
        return sorted(found, key=lambda version: int(version[1:]))

    def version(self, version: str) -> PromptVersion:
        """Return a version with its text. Raises PromptError where there is none, or it is not what was written."""
        file = self.folder / f"{version}.json"
        if not _VERSION.fullmatch(version) or not file.is_file():
            raise PromptError(
                f"prompt {self.name}: no version {version!r} in {self.folder}; there are {', '.join(self.versions()) or 'none'}"
            )
        try:
            found = PromptVersion.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise PromptError(f"{file}: no version of a prompt ({error.errors()[0]['msg']}); {_REMEDY}") from None
        if (found.prompt, found.version, found.digest) != (self.name, version, digest(found.text)):
            raise PromptError(f"{file}: it is not what was written as {version} of {self.name}; {_REMEDY}")
        return found

    def add(self, text: str, made_by: str, parent: str | None) -> str:
        """Make the next version and return its name; `current` stays. Raises PromptError for a text that is empty."""
        with self._lock():
            return self._add(text, made_by, parent)

    def marked(self, mark: Mark) -> str | None:
        """Return the version that a mark is on, or None where it is on none."""
        try:
            return (self.folder / mark).read_text().strip() or None
        except FileNotFoundError:
            return None

    def put(self, mark: Mark, version: str | None) -> None:
        """Put a mark on a version that there is (None: take it away). What is pinned is `current`, too."""
        with self._lock():
            if version is not None:
                self.version(version)
            self._put(mark, version)
            if mark == "pinned" and version is not None:
                self._put("current", version)

    def read_file(self, text: str, file: Path) -> str:
        """Take note of what the settings' file says, and return `current`.

        A new text is a new version, with the one that the file was as its parent; it becomes `current`, unless one is pinned.
        """
        with self._lock():
            was = self.marked("file")
            if was is not None and self.version(was).digest == digest(text):
                return self.marked("current") or was
            known = {self.version(version).digest: version for version in reversed(self.versions())}
            made_by = f"{file}" if was is None else f"{_EDIT}{file}"
            now = known.get(digest(text)) or self._add(text, made_by, was)
            self._put("file", now)
            pinned = self.marked("pinned")
            if pinned is None:
                self._put("current", now)
            if was is not None:
                uses = (
                    f"it is used from the next epoch on, in place of {was}"
                    if pinned is None
                    else f"{pinned} is pinned and stays in use"
                )
                log.warning("prompt %s: %s was edited, which is %s (parent %s); %s", self.name, file, now, was, uses)
            return self.marked("current") or now

    def seeds(self) -> list[str]:
        """Return the texts that the settings' file has had, the newest first: what an agent may have in it."""
        found, own = [self.version(version) for version in reversed(self.versions())], (SEED, self.marked("file"))
        return [one.text for one in found if one.version in own or one.made_by.startswith(_EDIT)]

    def _add(self, text: str, made_by: str, parent: str | None) -> str:
        if not text.strip():
            raise PromptError(f"prompt {self.name}: the text of a version cannot be empty")
        if parent is not None:
            self.version(parent)
        there = self.versions()
        name = f"p{int(there[-1][1:]) + 1:04d}" if there else SEED
        made = PromptVersion(
            prompt=self.name,
            version=name,
            text=text,
            digest=digest(text),
            parent=parent,
            made_by=made_by,
            created_ns=time.time_ns(),
        )
        write_atomic(self.folder / f"{name}.json", made.model_dump_json(indent=1).encode() + b"\n")
        log.info("prompt %s: %s (%s, parent %s)", self.name, name, made_by, parent)
        return name

    def _put(self, mark: Mark, version: str | None) -> None:
        if self.marked(mark) != version:
            write_atomic(self.folder / mark, f"{version or ''}\n".encode())

    def _lock(self) -> AbstractContextManager[bool]:
        return locked(self.folder / ".lock")


_REMEDY = "put the file back from a copy of the home"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_names(home: Path) -> list[str]:
    """Return the names of the prompts that a home has versions of."""
    return sorted(file.parent.name for file in (home / "prompts").glob(f"*/{SEED}.json"))
