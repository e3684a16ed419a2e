"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


@dataclass(frozen=True)
class Check:
    """One result: `found` has what is there, or what is wrong, where, and the remedy."""

    level: Literal["ok", "warning", "error"]
    name: str
    found: str

    def line(self) -> str:
        """Return `✓ tasks.train  512, the first is …`; further lines of what was found stand under it."""
        return f"{_MARKS[self.level]} {self.name:<15} " + self.found.removeprefix(f"{self.name}: ").replace(
            "\n", "\n" + " " * 18
        )
