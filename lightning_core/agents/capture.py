"""What an attempt prints, kept within bounds: the first and the last part of each stream, whatever comes between.

Whoever waits for the attempt reads meanwhile, so no stream can fill memory or disk, and no attempt waits for a reader.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path

HEAD_BYTES = 256 * 1024
TAIL_BYTES = 256 * 1024
_AT_ONCE = 256 * 1024


class Capture:
    """One stream: its first `HEAD_BYTES`, its last `TAIL_BYTES`, and how many bytes there were."""

    def __init__(self) -> None:
        self.total = 0
        self.is_too_long = False  # and what came after was not read
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = HEAD_BYTES - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail.append(data)
            self._tail_size += len(data)
            while self._tail_size - len(self._tail[0]) >= TAIL_BYTES:
                self._tail_size -= len(self._tail.popleft())

    @property
    def left_out(self) -> int:
        """Return the number of bytes between the two parts."""
        return self.total - len(self._head) - min(self._tail_size, TAIL_BYTES)

    def end(self) -> bytes:
        """Return the last part of the stream: all of it where it was short, else `TAIL_BYTES`."""
        tail = b"".join(self._tail)[-TAIL_BYTES:]
        return tail if self.left_out else bytes(self._head) + tail

    def text(self) -> str:
        """Return both parts, with a line in between that says how much is missing."""
        if not self.left_out:
            return self.end().decode("utf-8", "replace")
        head, tail = bytes(self._head).decode("utf-8", "replace"), self.end().decode("utf-8", "replace")
        return f"{head}\n[… {self.left_out} bytes left out …]\n{tail}"

    def last_line(self) -> tuple[str, bool]:
        """Return the last line that is not blank, and whether its beginning was left out."""
        end = self.end().rstrip()
        start = max(end.rfind(b"\n"), end.rfind(b"\r")) + 1
        return end[start:].decode("utf-8", "replace").strip(), start == 0 and self.left_out > 0

    def write(self, path: Path) -> None:
        """Keep the stream in a new file, unless there was none. Raises OSError, also where something is there already."""
        if self.total:
            with path.open("x", encoding="utf-8") as file:
                file.write(self.text())


class Stream(Capture):
    """A capture of what is written to a pipe, `most` bytes of it, after which writing fails. `given` is its writing end; a
    context manager, which closes both."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._pipe, self.given = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._pipe, False)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.hand_over()
        self._close()

    def fileno(self) -> int:
        return self._pipe

    def hand_over(self) -> None:
        """Close the writing end, of which others have copies: what they wrote ends with the last of them."""
        if self.given >= 0:
            os.close(self.given)
            self.given = -1

    def read(self) -> bool:
        """Take what is there; return False at the end of it."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, _AT_ONCE):
                self.add(data)
                if self.total > self._most:
                    self.is_too_long = True
                    self._close()
                    return False
                if len(data) < _AT_ONCE:
                    return True
            return False
        return True

    def _close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
