"""What an attempt prints, kept within bounds: the first and the last part of each stream, whatever comes between.

One thread reads the pipes of all attempts of a pool, so that no stream can fill memory or disk and no attempt waits
for a reader.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections import deque
from pathlib import Path

HEAD_BYTES = 256 * 1024
TAIL_BYTES = 256 * 1024


class Capture:
    """One stream: its first `HEAD_BYTES`, its last `TAIL_BYTES`, and how many bytes there were."""

    def __init__(self) -> None:
        self.total = 0
        self.ended = threading.Event()
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
        """Bytes between the two parts."""
        return self.total - len(self._head) - min(self._tail_size, TAIL_BYTES)

    def end(self) -> bytes:
        """The last part of the stream: all of it where it was short, else `TAIL_BYTES`."""
        tail = b"".join(self._tail)[-TAIL_BYTES:]
        return tail if self.left_out else bytes(self._head) + tail

    def text(self) -> str:
        """Both parts, with a line in between that says how much is missing."""
        if not self.left_out:
            return self.end().decode("utf-8", "replace")
        head, tail = bytes(self._head).decode("utf-8", "replace"), self.end().decode("utf-8", "replace")
        return f"{head}\n[… {self.left_out} bytes left out …]\n{tail}"

    def last_line(self) -> tuple[str, bool]:
        """The last line that is not blank, and whether its beginning was left out."""
        end = self.end().rstrip()
        start = max(end.rfind(b"\n"), end.rfind(b"\r")) + 1
        return end[start:].decode("utf-8", "replace").strip(), start == 0 and self.left_out > 0

    def write(self, path: Path) -> None:
        """Keep the stream in a file, unless there was none."""
        if self.total:
            path.write_text(self.text(), encoding="utf-8")


class Pump:
    """The thread that reads; `open` gives a descriptor to write to and the capture of what is written."""

    def __init__(self) -> None:
        self._wakeup_r, self._wakeup_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._arriving: list[tuple[int, Capture]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="attempt-output", daemon=True)
        self._thread.start()

    def open(self) -> tuple[int, Capture]:
        """A new pipe: the writing end (the caller closes it) and what arrives at the other. OSError once closed."""
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        capture = Capture()
        with self._lock:
            if self._closed:
                os.close(read)
                os.close(write)
                raise OSError("the pump was closed")
            self._arriving.append((read, capture))
            self._wake()
        return write, capture

    def close(self) -> None:
        """Stop reading; captures still open end here."""
        with self._lock:
            self._closed = True
            self._wake()
        self._thread.join()
        os.close(self._wakeup_w)
        os.close(self._wakeup_r)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wakeup_w, b"x")

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup_r, selectors.EVENT_READ)
            while not self._closed:
                for key, _ in selector.select():
                    if key.data is not None:
                        self._read(selector, key.fd, key.data)
                        continue
                    os.read(self._wakeup_r, 4096)
                    with self._lock:
                        arriving, self._arriving = self._arriving, []
                    for descriptor, capture in arriving:
                        selector.register(descriptor, selectors.EVENT_READ, capture)
            open_still = [(key.fd, key.data) for key in selector.get_map().values() if key.data is not None]
            for descriptor, capture in open_still + self._arriving:
                os.close(descriptor)
                capture.ended.set()

    @staticmethod
    def _read(selector: selectors.BaseSelector, descriptor: int, capture: Capture) -> None:
        try:
            data = os.read(descriptor, 256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            capture.add(data)
            return
        selector.unregister(descriptor)
        os.close(descriptor)
        capture.ended.set()
