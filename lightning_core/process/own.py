"""What one process owns while it lives, and any other may take over then."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lightning_core.files import locked, write_atomic
from lightning_core.process.linux import created, is_running


class Owner:
    """Which process owns something, by a file that names it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def claim(self) -> bool:
        """Make this process the owner and return True, or return False where a living process owns it."""
        with locked(self._file.with_suffix(".lock")):
            try:
                held = json.loads(self._file.read_text())
                if is_running(held["pid"], held["started"]):
                    return False
            except (FileNotFoundError, ValueError, KeyError):
                pass
            me = {"pid": os.getpid(), "started": created(os.getpid())}
            write_atomic(self._file, json.dumps(me).encode(), mode=0o600)
            return True

    def release(self) -> None:
        self._file.unlink(missing_ok=True)
