"""Which calls may begin now: budgets of an attempt, how many of its calls run at once, how many there are in all."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from lightning_core.config import GatewaySettings
from lightning_core.gateway.access import Caller
from lightning_core.gateway.http import HttpError, unavailable
from lightning_core.gateway.room import Lanes
from lightning_core.gateway.stats import Stats

_RETRY_AFTER_S = 1


class Admission:
    """For one event loop."""

    def __init__(self, settings: GatewaySettings, stats: Stats) -> None:
        self._settings = settings
        self._stats = stats
        self._in_all = 0
        self._lanes = Lanes(settings.concurrent_per_rollout)

    def check(self, caller: Caller, label: str) -> None:
        """Raise HttpError 429 for an attempt that has used up its budget or queue, 503 where the gateway is full."""
        settings = self._settings
        if self._in_all >= settings.most_calls:
            message = f"{self._in_all} calls are in flight, as many as gateway.most_calls allows"
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
        most = settings.concurrent_per_rollout
        waiting = self._lanes.inside[caller.rollout_id, caller.attempt_id] - most
        if waiting >= settings.waiting_per_rollout:
            self._stats.turned_away.labels(label, "queue").inc()
            raise HttpError(
                429,
                f"{most} calls of this rollout run and {waiting} wait, as many as "
                "gateway.concurrent_per_rollout and waiting_per_rollout allow",
                "rate_limit_error",
                "rollout_queue_full",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
            )

    @contextlib.asynccontextmanager
    async def place(self, caller: Caller) -> AsyncIterator[None]:
        """Hold a call's place while the block runs. It waits until the attempt's earlier calls leave room:
        first come, first served.
        """
        self._in_all += 1
        attempt = (caller.rollout_id, caller.attempt_id)
        try:
            async with contextlib.AsyncExitStack() as stack:
                if caller.rollout_id is not None:
                    waits = self._lanes.inside[attempt] >= self._lanes.each
                    with self._stats.waiting.track_inprogress() if waits else contextlib.nullcontext():
                        await stack.enter_async_context(self._lanes.place(attempt))
                yield
        finally:
            self._in_all -= 1
