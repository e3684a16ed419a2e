"""Room for what is sent here: how many bytes of requests may be in memory at one time, in all and of one sender.

A body takes room as it comes in, and a call keeps its body's until it ends. A sender may have a quarter, so that no attempt,
nor all that send without a token, shut the others out; who holds the secret may have all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterator

from lightning_core.gateway.access import Caller
from lightning_core.gateway.http import Take, unavailable

OWN_SHARE = "sender_room_used_up"  # the code of a refusal that is the sender's own doing

_Whose = tuple[str, str | None, str | None]

_SHARES = 4
_MOST_WAITING = 256  # turns of one sender


class Room:
    """For one event loop."""

    def __init__(self, most_bytes: int) -> None:
        self._most = self._left = most_bytes
        self._held: dict[_Whose, int] = {}

    @contextlib.contextmanager
    def holding(self, caller: Caller) -> Iterator[Take]:
        """Yield `take(size)`, which raises HttpError 503 where so much is not left; all is given back in the end."""
        held, whose = 0, _whose(caller)
        share = self._most if caller.sender == "secret" else self._most // _SHARES

        def take(size: int) -> None:
            nonlocal held
            if size > share - self._held.get(whose, 0):
                message = (
                    f"your requests have more than {share} bytes in all at one time; send it again when some are done"
                )
                raise unavailable(message, code=OWN_SHARE)
            if size > self._left:
                raise unavailable("too many large requests at one time; send it again")
            self._left -= size
            self._held[whose] = self._held.get(whose, 0) + size
            held += size

        try:
            yield take
        finally:
            self._left += held
            kept = self._held.pop(whose, 0) - held
            if kept:
                self._held[whose] = kept


class Lanes:
    """Places, of which each sender has some; first come, first served. For one event loop."""

    def __init__(self, each: int) -> None:
        self.each = each
        self.inside: Counter[Hashable] = Counter()  # who is in, or waits
        self._lanes: dict[Hashable, asyncio.Semaphore] = {}

    @contextlib.asynccontextmanager
    async def place(self, whose: Hashable) -> AsyncIterator[None]:
        lane = self._lanes.setdefault(whose, asyncio.Semaphore(self.each))
        self.inside[whose] += 1
        try:
            async with lane:
                yield
        finally:
            self.inside[whose] -= 1
            if not self.inside[whose]:
                del self.inside[whose], self._lanes[whose]


class Turns:
    """Who may be read now, of messages of which nobody knows the size before: `most` at a time, and of one sender a quarter.

    The others wait, and what they send is not read meanwhile.
    """

    def __init__(self, most: int) -> None:
        self._all = asyncio.Semaphore(most)
        self._lanes = Lanes(max(1, most // _SHARES))

    @contextlib.asynccontextmanager
    async def turn(self, caller: Caller) -> AsyncIterator[None]:
        """Hold a turn while the block runs. Raises HttpError 503 where too many of the sender's wait already."""
        whose = _whose(caller)
        if (waiting := self._lanes.inside[whose]) >= _MOST_WAITING:
            raise unavailable(f"{waiting} of your requests wait to be read; send it again", code=OWN_SHARE)
        async with self._lanes.place(whose), self._all:
            yield


def _whose(caller: Caller) -> _Whose:
    return caller.sender, caller.rollout_id, caller.attempt_id
