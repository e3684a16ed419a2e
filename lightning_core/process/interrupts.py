"""Know that Ctrl-C or SIGTERM came, whatever a library made of it, and keep it out of the midst of a write.

with watched() as interrupts:
    with held():
        …  # an interrupt comes after it
    if interrupts.came:
        …
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupts:
    """What came since the watch began. DuckDB, for one, raises an error of its own in place of a KeyboardInterrupt."""

    came: bool = False
    holding: int = 0  # `held` within one another
    late: Callable[[], object] | None = None

    def on(self, handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        """Note a signal, and give it to the handler that was there: now, or when what is held has ended."""
        again, self.came = self.came, True
        if self.holding and not again:
            self.late = lambda: handler(number, None)
        else:
            handler(number, frame)


_watching: Interrupts | None = None


@contextlib.contextmanager
def watched() -> Iterator[Interrupts]:
    """Note the interrupts of this process while the block runs; none comes in a thread that is not its first."""
    global _watching
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    before, _watching = _watching, interrupts
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, lambda *signalled, handler=handler: interrupts.on(handler, *signalled))
    try:
        yield interrupts
    finally:
        _watching = before
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let the block come to its end: an interrupt meanwhile comes after it, and a second one at once."""
    interrupts = _watching
    if interrupts is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts.holding += 1
    try:
        yield
    finally:
        interrupts.holding -= 1
        if not interrupts.holding and interrupts.late is not None:
            late, interrupts.late = interrupts.late, None
            late()
