"""Attempts and openers whose tokens and keys open nothing any more, before they end by themselves."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_core.files import write_atomic
from lightning_core.gateway.service_files import PRIVATE, services

OPENER = ""  # in a rollout's place: no rollout has an empty id


class Revoked:
    """The attempts and openers, kept in a file of the home. An entry stays: the file has those that somebody took out by hand."""

    def __init__(self, home: Path) -> None:
        self._path = services(home) / "revoked.json"
        self._attempts = {(rollout, attempt) for rollout, attempt in self._read()}

    def has(self, rollout_id: str, attempt_id: str) -> bool:
        """Return whether tokens of this attempt are refused; where the rollout is OPENER, the key of this id."""
        return (rollout_id, attempt_id) in self._attempts

    def add(self, rollout_id: str, attempt_id: str) -> None:
        """Refuse these from now on; OSError where that cannot be stored."""
        attempts = self._attempts | {(rollout_id, attempt_id)}
        write_atomic(self._path, json.dumps(sorted(attempts)).encode(), mode=PRIVATE)
        self._attempts = attempts

    def _read(self) -> list[list[str]]:
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}; correct the file, or remove it") from None
        return list(found)
