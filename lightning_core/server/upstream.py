"""The HTTP client side: one connection pool an address, which replica gets a call, and retries before the first byte."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from lightning_core.server.targets import Target

log = logging.getLogger(__name__)

RETRY_DELAYS_S = (0.25, 0.5, 1.0, 2.0)
_RETRIED_STATUS = (500, 502, 503, 504)
# vLLM closes idle connections after 5 s; letting go earlier avoids posting into one that is being closed.
_KEEPALIVE_S = 3.0
_HOMES_KEPT = 50_000


class UpstreamDown(Exception):
    """An upstream could not be reached, or failed for reasons of its own, each time it was tried."""


class Replicas:
    """Which of a policy's vLLMs a call goes to: the one that has its rollout's prefix cached, else the least loaded."""

    def __init__(self) -> None:
        self.load: Counter[str] = Counter()  # calls now, by address
        self._homes: OrderedDict[str, str] = OrderedDict()

    def order(self, addresses: tuple[str, ...], rollout: str | None) -> list[str]:
        """The addresses in the order in which they should be tried."""
        if len(addresses) == 1:
            return list(addresses)
        least = sorted(addresses, key=lambda address: self.load[address])
        home = self._homes.get(rollout) if rollout is not None else None
        return least if home not in addresses else sorted(least, key=lambda address: address != home)

    def answered(self, address: str, rollout: str | None) -> None:
        """From now on the rollout's calls go here."""
        if rollout is None:
            return
        self._homes[rollout] = address
        self._homes.move_to_end(rollout)
        if len(self._homes) > _HOMES_KEPT:
            self._homes.popitem(last=False)


@dataclass(slots=True)
class Answer:
    """An upstream's response: its head has come, and of a stream the first bytes."""

    response: aiohttp.ClientResponse
    first: bytes

    @property
    def streams(self) -> bool:
        return self.response.content_type == "text/event-stream"


class Upstreams:
    """Connection pools by address; they live as long as the server."""

    def __init__(self) -> None:
        self.replicas = Replicas()
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def _session(self, address: str) -> aiohttp.ClientSession:
        session = self._sessions.get(address)
        if session is None:
            connector: aiohttp.BaseConnector
            if address.startswith("unix://"):
                path = address.removeprefix("unix://")
                connector = aiohttp.UnixConnector(path, limit=0, keepalive_timeout=_KEEPALIVE_S)
            else:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
            # No limit on the whole: a call may queue in vLLM for minutes, and the attempt has a timeout of its own.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
            session = aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 18)
            self._sessions[address] = session
        return session

    @contextlib.asynccontextmanager
    async def post(
        self, target: Target, path: str, body: dict[str, Any], rollout: str | None, on_retry: Callable[[], None]
    ) -> AsyncIterator[Answer]:
        """The answer of the target; raises UpstreamDown after the last try. `path` is without /v1.

        A failure is tried again, at another replica first, until the first byte of a stream, or the head of a whole reply, is
        here; never after that.
        """
        headers = {"Content-Type": "application/json"}
        if target.api_key:
            headers["Authorization"] = f"Bearer {target.api_key}"
        data, problem = orjson.dumps(body), ""
        tried: list[str] = []
        for delay in (*RETRY_DELAYS_S, None):
            order = self.replicas.order(target.addresses, rollout)
            address = min(order, key=tried.count)  # each once before any of them twice
            tried.append(address)
            self.replicas.load[address] += 1
            try:
                try:
                    answer = await self._try(address, target, path, data, headers)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    problem = f"{type(error).__name__}: {error}"
                else:
                    async with answer.response:
                        if answer.response.status not in _RETRIED_STATUS:
                            self.replicas.answered(address, rollout)
                            yield answer
                            return
                        text = await _text(answer.response)
                        problem = f"answered {answer.response.status}: {text}"
            finally:
                self.replicas.load[address] -= 1
            if delay is not None:
                log.info("%s: %s; trying again in %s s", address, without_key(problem, target), delay)
                on_retry()
                # Another replica is not given time to recover.
                await asyncio.sleep(0 if len(set(tried)) < len(target.addresses) else delay)
        told = without_key(problem, target)
        raise UpstreamDown(f"the model server at {tried[-1]} {told} ({len(RETRY_DELAYS_S) + 1} tries)")

    async def _try(self, address: str, target: Target, path: str, data: bytes, headers: dict[str, str]) -> Answer:
        base = "http://vllm" if address.startswith("unix://") else address
        # What an upstream's base_url ends with is its own business; a vLLM has everything under /v1.
        url = base + ("/v1" if target.policy is not None else "") + path
        # No redirects: they would take the key, and the request, to where nobody configured.
        response = await self._session(address).post(url, data=data, headers=headers, allow_redirects=False)
        first = b""
        if response.status == 200 and response.content_type == "text/event-stream":
            try:
                first = await response.content.readany()
                if not first:
                    raise aiohttp.ServerDisconnectedError("the stream ended before it began")
            except BaseException:
                response.close()
                raise
        return Answer(response, first)

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()


def without_key(text: str, target: Target) -> str:
    """`text` as it may be told, stored and logged: some APIs repeat the key they were sent."""
    return text.replace(target.api_key, "…") if target.api_key else text


async def _text(response: aiohttp.ClientResponse) -> str:
    try:
        return (await response.text(errors="replace"))[:200]
    except (aiohttp.ClientError, TimeoutError, OSError, LookupError):
        return ""
