"""Start a process again that ended without being asked to, at growing intervals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from lightning_core.process.spawn import Process

log = logging.getLogger(__name__)

_FIRST_S, _LONGEST_S, _STEADY_S = 1.0, 30.0, 60.0


class Supervised:
    """A process that is started again after 1 s, then after twice as long each time, 30 s at most; after 1 s again where it
    ran for a minute. What it left of its session is ended first.
    """

    def __init__(self, name: str, start: Callable[[], Process | None]) -> None:
        self._name, self._start = name, start
        self._process: Process | None = None
        self._began, self._due, self._wait_s = 0.0, 0.0, 0.0

    def look(self) -> Process | None:
        """Start the process where none runs and it is time to; return it if it was started just now, else None.

        `start` returns None as long as it cannot begin.
        """
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            ran_s = now - self._began
            self._wait_s = _FIRST_S if ran_s > _STEADY_S else min(_LONGEST_S, max(_FIRST_S, 2 * self._wait_s))
            self._due = now + self._wait_s
            code = self._process.end(0)
            log.warning("%s ended with %d after %.0f s; it is started again in %.0f s", self._name, code, ran_s, self._wait_s)  # fmt: skip
            self._process = None
        if self._process is None and now >= self._due and (process := self._start()) is not None:
            self._process, self._began = process, now
            log.info("%s runs as %d", self._name, process.pid)
            return process
        return None
