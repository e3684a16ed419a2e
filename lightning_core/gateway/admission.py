"""Which calls may begin now: budgets of an attempt, how many of its calls run at once, how many there are in all."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from lightning_core.config import GatewaySettings
from lightning_core.gateway.access import Caller
from lightning_core.gateway.http import HttpError, unavailable
from lightning_core.gateway.stats import Stats

_RETRY_AFTER_S = 1


@dataclass(slots=True)
class _Lane:
    """The calls of one attempt."""

    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Admission:
    """For one event loop."""

    def __init__(self, settings: GatewaySettings, stats: Stats) -> None:
        self._settings = settings
        self._stats = stats
        self._calls = 0
        self._lanes: dict[tuple[str, str], _Lane] = {}

    def check(self, caller: Caller, label: str) -> None:
        """Raises HttpError 429 for an attempt that has used up its budget or queue, 503 where the gateway is full."""
        settings = self._settings
        if self._calls >= settings.most_calls:
            message = f"{self._calls} calls are in flight, as many as gateway.most_calls allows"
            self._stats.turned_away.labels(label, "full").inc()
            raise unavailable(message)
        if caller.rollout_id is None or caller.attempt_id is None:
            return
        used = self._stats.attempt(caller.rollout_id, caller.attempt_id)
        for what, count, most in (
            ("calls", used.calls, settings.calls_per_rollout),
            ("tokens", used.tokens, settings.tokens_per_rollout),
        ):
            if most is not None and count >= most:
                self._stats.turned_away.labels(label, "budget").inc()
                raise HttpError(
                    429,
                    f"this rollout has used {count} {what}; gateway.{what}_per_rollout allows {most}",
                    "rate_limit_error",
                    "rollout_budget_exceeded",
                    headers={"x-should-retry": "false"},  # OpenAI's clients would try again and again
                )
        lane = self._lanes.get((caller.rollout_id, caller.attempt_id))
        if lane is not None and len(lane.waiting) >= settings.waiting_per_rollout and self._is_full(lane):
            self._stats.turned_away.labels(label, "queue").inc()
            raise HttpError(
                429,
                f"{lane.running} calls of this rollout run and {len(lane.waiting)} wait, as many as "
                "gateway.concurrent_per_rollout and waiting_per_rollout allow",
                "rate_limit_error",
                "rollout_queue_full",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
            )

    async def enter(self, caller: Caller) -> None:
        """Waits until the attempt's earlier calls leave room; first come, first served. Once it is in, `leave` is due."""
        self._calls += 1
        if caller.rollout_id is None or caller.attempt_id is None:
            return
        key = (caller.rollout_id, caller.attempt_id)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        if not self._is_full(lane):
            lane.running += 1
            return
        try:
            await self._wait(key, lane)  # whoever ends hands its place on, so `running` stays as it is
        except BaseException:
            self._calls -= 1
            raise

    def leave(self, caller: Caller) -> None:
        self._calls -= 1
        if caller.rollout_id is not None and caller.attempt_id is not None:
            key = (caller.rollout_id, caller.attempt_id)
            self._leave(key, self._lanes[key])

    def _is_full(self, lane: _Lane) -> bool:
        return lane.running >= self._settings.concurrent_per_rollout

    async def _wait(self, key: tuple[str, str], lane: _Lane) -> None:
        place = asyncio.get_running_loop().create_future()
        lane.waiting.append(place)
        self._stats.waiting.inc()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # handed over in the same moment: it goes to the next
                self._leave(key, lane)
            else:
                lane.waiting.remove(place)
            raise
        finally:
            self._stats.waiting.dec()

    def _leave(self, key: tuple[str, str], lane: _Lane) -> None:
        self._hand_on(lane)
        if not lane.running and not lane.waiting:
            self._lanes.pop(key, None)

    def _hand_on(self, lane: _Lane) -> None:
        while lane.waiting:
            place = lane.waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        lane.running -= 1
