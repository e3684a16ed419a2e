"""Where a call goes: which replica gets it, over which connections, and retries before the first byte."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from lightning_core.gateway.http_client import Broken, Connections, Reply
from lightning_core.gateway.targets import Target

log = logging.getLogger(__name__)

RETRY_DELAYS_S = (0.25, 0.5, 1.0, 2.0)
_GONE_DELAY_S = 0.5  # between tries while a supervisor starts it again
_RETRIED_STATUS = (500, 502, 503, 504)
_HOMES_KEPT = 50_000


class UpstreamDown(Exception):
    """An upstream could not be reached, or failed for reasons of its own, each time it was tried."""


class Replicas:
    """Which of a policy's vLLMs a call goes to: the one that has its rollout's prefix cached, else the least loaded.

    `whose` calls they are is a rollout and a policy: a rollout's calls to a judge, or another policy, leave its homes alone.
    """

    def __init__(self) -> None:
        self.load: Counter[str] = Counter()  # calls now, by address
        self._homes: OrderedDict[tuple[str, str], str] = OrderedDict()

    def order(self, addresses: tuple[str, ...], whose: tuple[str, str] | None) -> list[str]:
        """Return the addresses in the order in which they should be tried."""
        if len(addresses) == 1:
            return list(addresses)
        least = sorted(addresses, key=lambda address: self.load[address])
        home = self._homes.get(whose) if whose is not None else None
        return least if home not in addresses else sorted(least, key=lambda address: address != home)

    def answered(self, address: str, whose: tuple[str, str] | None) -> None:
        """Send these calls to `address` from now on."""
        if whose is None:
            return
        self._homes[whose] = address
        self._homes.move_to_end(whose)
        if len(self._homes) > _HOMES_KEPT:
            self._homes.popitem(last=False)


class Upstreams:
    """Kept connections by address; they live as long as the gateway."""

    def __init__(self) -> None:
        self.replicas = Replicas()
        self._connections: dict[str, Connections] = {}

    @contextlib.asynccontextmanager
    async def post(
        self, target: Target, path: str, body: dict[str, Any], rollout: str | None, on_retry: Callable[[], None]
    ) -> AsyncIterator[Reply]:
        """Send a request to the target and yield its reply; raises UpstreamDown after the last try.

        `path` is without /v1. A failure is tried again, at another replica first, until the first byte of a stream, or
        the head of a whole reply, is here; never after that. Where a supervisor starts the target again, calls
        wait for it.
        """
        data, problem = orjson.dumps(body), ""
        whose = (rollout, target.label) if rollout is not None and len(target.addresses) > 1 else None
        tried: list[str] = []
        delays, gone_since = iter(RETRY_DELAYS_S), None
        while True:
            gone = False
            order = self.replicas.order(target.addresses, whose)
            address = min(order, key=tried.count)  # each once before any of them twice
            tried.append(address)
            self.replicas.load[address] += 1
            try:
                try:
                    reply = await self._try(address, target, path, data)
                except OSError as error:  # TimeoutError is one
                    problem, gone = f"{type(error).__name__}: {error}", True
                    gone_since = gone_since or time.monotonic()
                else:
                    try:
                        if reply.status not in _RETRIED_STATUS:
                            self.replicas.answered(address, whose)
                            yield reply
                            return
                        problem = f"answered {reply.status}: {await _text(reply)}"
                    finally:
                        reply.release()
            finally:
                self.replicas.load[address] -= 1
            delay = next(delays, None)
            if delay is None and not (gone and gone_since and time.monotonic() < gone_since + target.patience_s):
                break
            log.info("%s: %s; trying again", address, without_key(problem, target))
            on_retry()
            # Another replica is not given time to recover.
            await asyncio.sleep(0 if len(set(tried)) < len(target.addresses) else delay or _GONE_DELAY_S)
        reason = without_key(problem, target)
        raise UpstreamDown(f"the model server at {tried[-1]} {reason} ({len(tried)} tries)")

    async def _try(self, address: str, target: Target, path: str, data: bytes) -> Reply:
        connections = self._connections.get(address)
        if connections is None:
            connections = self._connections[address] = Connections(address)
        reply = await connections.post(target.base + path, target.api_key, data)
        if reply.status == 200 and reply.streams:
            try:
                if not await reply.begun():
                    raise Broken("the stream ended before it began")
            except BaseException:
                reply.release()
                raise
        return reply

    def close(self) -> None:
        for connections in self._connections.values():
            connections.close()


def without_key(text: str, target: Target) -> str:
    """Return `text` as it may be shown, stored and logged: some APIs repeat the key they were sent."""
    return text.replace(target.api_key, "…") if target.api_key else text


async def _text(reply: Reply) -> str:
    try:
        return (await reply.read())[:200].decode(errors="replace")
    except OSError:
        return ""
