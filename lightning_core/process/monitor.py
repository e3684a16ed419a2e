"""Peak memory of this process and everything under it, as the sum of PSS (shared pages counted once)."""

from __future__ import annotations

import contextlib
import threading
import time

import psutil

_EVERY_S = 2.0
_SHARE = 0.02  # of the time that looking may take


class PeakMemory:
    """Samples the process tree every few seconds from a thread while its context is open.

    The kernel walks all pages of a process to tell its PSS, and holds up what the process maps meanwhile: the longer that
    takes, the less often it is asked.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.at_peak: dict[str, int] = {}  # command → bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        took = 0.0
        while not self._stop.wait(max(_EVERY_S, took / _SHARE)):
            began = time.monotonic()
            by_command: dict[str, int] = {}
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    full = process.memory_full_info()
                    name = _short(process.cmdline())
                    by_command[name] = by_command.get(name, 0) + int(getattr(full, "pss", full.uss))
            total = sum(by_command.values())
            if total > self.peak_bytes:
                self.peak_bytes, self.at_peak = total, by_command
            took = time.monotonic() - began


def _short(command: list[str]) -> str:
    """Return the module or script of a Python command line, else the program."""
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    scripts = [part for part in command[:3] if part.endswith(".py") or "/bin/" in part]
    return (scripts[-1] if scripts else command[0] if command else "?").rsplit("/", 1)[-1]
