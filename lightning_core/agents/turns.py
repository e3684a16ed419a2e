"""Turns of attempts: many beside each other, or one alone, which goes first."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """Who asks for a turn alone waits for those under way, and those who come after wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._alone = 0  # that run alone, or wait for it

    @contextlib.contextmanager
    def taken(self, alone: bool) -> Iterator[None]:
        with self._changed:
            self._alone += alone
            self._changed.wait_for(lambda: not self._under_way if alone else not self._alone)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._alone -= alone
                self._changed.notify_all()
