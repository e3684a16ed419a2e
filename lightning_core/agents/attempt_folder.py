"""The folder where an attempt finds its task and leaves its result. What lies there afterwards is the attempt's doing.

Nothing of it is trusted: only regular files are read, without following links, without waiting, and up to a size.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path


class LeftBehindError(Exception):
    """An attempt left something that cannot be used: its own error, whatever else it did."""


class AttemptFolder:
    """A new folder inside `parent`. A context manager that removes it."""

    def __init__(self, parent: Path, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # The folder that was made, also where the attempt puts another at its path.
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> AttemptFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        try:
            shutil.rmtree(self.path, ignore_errors=True)
        except RecursionError:  # folders in folders, a thousand deep
            subprocess.run(["rm", "-rf", "--", str(self.path)], stderr=subprocess.DEVNULL, check=False)

    def read(self, name: str, most: int) -> bytes | None:
        """Return a file's content, None where there is no such file. Raises LeftBehindError where it cannot be read."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(name, flags, dir_fd=self._descriptor), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise LeftBehindError(f"what the attempt left as {name} is no regular file")
                content = file.read(most + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LeftBehindError(f"what the attempt left as {name} cannot be read: {error.strerror}") from None
        if len(content) > most:
            raise LeftBehindError(f"what the attempt left as {name} is larger than {most} bytes")
        return content
