"""The agent's own file, compiled once for all attempts that are forked from one process."""

from __future__ import annotations

import os
from types import CodeType


class AgentFile:
    """A Python file that every attempt runs for itself: what attempts share is its code, and nothing it made."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._code: CodeType | None = None

    def code(self) -> CodeType | None:
        """Return the code of the file as it is now, compiled again where the file has changed. None where that fails:
        an attempt that imports the file raises the same, and its errors are shown."""
        try:
            found = os.stat(self.path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._seen:
                self._seen, self._code = seen, None
                with open(self.path, "rb") as file:
                    self._code = compile(file.read(), self.path, "exec", dont_inherit=True)
        except Exception:  # noqa: BLE001 - a file may hold anything
            self._code = None
        return self._code
