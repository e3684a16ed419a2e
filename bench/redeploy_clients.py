"""Clients that stream one call after another through the gateway, and note when each of them heard anything."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from types import TracebackType

import aiohttp

from lightning_core.gateway.handle import GatewayHandle

TOKENS = 16


class Clients:
    """`count` of them, from `__enter__` to `__exit__`. `failed` counts calls that did not end well."""

    def __init__(self, server: GatewayHandle, count: int) -> None:
        self.failed = 0
        self._server, self._count = server, count
        self._heard: list[list[float]] = [[] for _ in range(count)]  # a client's times
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    def __enter__(self) -> Clients:
        self._thread.start()
        while not all(len(times) > TOKENS for times in self._heard):  # vLLM is warm
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def longest_gap(self, began: float, ended: float) -> float:
        """The longest time that any client heard nothing and that overlaps with these (of perf_counter)."""
        while not all(times[-1] > ended for times in self._heard):
            time.sleep(0.05)
        longest = 0.0
        for times in self._heard:
            for before, after in itertools.pairwise(times):
                if after > began and before < ended:
                    longest = max(longest, after - before)
        return longest

    def rate(self, begin: float, end: float) -> float:
        """Tokens a second that all clients heard between two times of perf_counter."""
        return sum(begin <= at < end for times in self._heard for at in times) / (end - begin)

    def back_after(self, ended: float, quiet: float) -> float:
        """Seconds after `ended` until a second begins in which they hear nine tenths of the `quiet` rate."""
        later = 0.0
        while True:
            while time.perf_counter() < ended + later + 1:
                time.sleep(0.05)
            if self.rate(ended + later, ended + later + 1) >= 0.9 * quiet:
                return later
            later += 0.1

    async def _all(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._client(session, number) for number in range(self._count)))

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        rollout, turn = f"c{number}", 0
        url = self._server.attempt_url(rollout, "a") + "/v1/chat/completions"
        headers = {"Authorization": "Bearer " + self._server.mint(rollout, "a", "train")}
        while not self._stop.is_set():
            turn += 1
            body = {
                "model": "policy",
                "messages": [{"role": "user", "content": f"{number}, {turn}: tell a story"}],
                "max_tokens": TOKENS,
                "stream": True,
                "ignore_eos": True,
            }
            last = b""
            async with session.post(url, json=body, headers=headers) as response:
                async for line in response.content:
                    if line.startswith(b"data:"):
                        last = line
                        self._heard[number].append(time.perf_counter())
            self.failed += last.strip() != b"data: [DONE]"
