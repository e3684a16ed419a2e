"""The HTTP client side: one connection pool for each vLLM, and the retries before the first byte."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson

from lightning_core.server.routes import Route

log = logging.getLogger(__name__)

RETRY_DELAYS_S = (0.25, 0.5, 1.0, 2.0)
_RETRIED_STATUS = (502, 503)
# vLLM closes idle connections after 5 s; letting go earlier avoids posting into one that is being closed.
_KEEPALIVE_S = 3.0


class UpstreamDown(Exception):
    """vLLM could not be reached, or refused the call for reasons of its own, each time it was tried."""


class Upstreams:
    """Connection pools by address; they live as long as the server."""

    def __init__(self) -> None:
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def _session(self, upstream: str) -> aiohttp.ClientSession:
        session = self._sessions.get(upstream)
        if session is None:
            connector: aiohttp.BaseConnector
            if upstream.startswith("unix://"):
                connector = aiohttp.UnixConnector(
                    upstream.removeprefix("unix://"), limit=0, keepalive_timeout=_KEEPALIVE_S
                )
            else:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
            # No limit on the whole: a call may queue in vLLM for minutes, and the attempt has a timeout of its own.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
            session = aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 18)
            self._sessions[upstream] = session
        return session

    async def post(
        self, route: Route, path: str, body: dict[str, Any], on_retry: Callable[[], None]
    ) -> aiohttp.ClientResponse:
        """The open response of vLLM; the caller closes it. Raises UpstreamDown after the last try."""
        base = "http://vllm" if route.upstream.startswith("unix://") else route.upstream
        headers = {"Content-Type": "application/json"}
        if route.api_key:
            headers["Authorization"] = f"Bearer {route.api_key}"
        data = orjson.dumps(body)
        for delay in (*RETRY_DELAYS_S, None):
            try:
                response = await self._session(route.upstream).post(base + path, data=data, headers=headers)
                if response.status not in _RETRIED_STATUS:
                    return response
                problem = f"answered {response.status}: {(await response.text())[:200]}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
            if delay is not None:
                log.info("%s: %s; trying again in %s s", route.upstream, problem, delay)
                on_retry()
                await asyncio.sleep(delay)
        raise UpstreamDown(f"the model server at {route.upstream} {problem} ({len(RETRY_DELAYS_S) + 1} tries)")

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
