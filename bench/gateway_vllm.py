"""Tokens a second of a real vLLM, direct and through the gateway: interleaved pairs, the same flags on both sides."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from bench.gateway_load import Door

CONCURRENT, TOKENS = 32, 48
_FLAGS = {"logprobs": True, "return_token_ids": True, "ignore_eos": True, "max_tokens": TOKENS, "temperature": 1.0}


def tokens_a_second(ours: Door, address: str, model: str, rounds: int) -> list[tuple[float, float]]:
    """(through the gateway, direct), a pair a round; the first pair warms up and is not among them."""
    return asyncio.run(_pairs(ours, address, model, rounds))[1:]


async def _pairs(ours: Door, address: str, model: str, rounds: int) -> list[tuple[float, float]]:
    unix = address.startswith("unix://")
    connector = (
        aiohttp.UnixConnector(address.removeprefix("unix://"), limit=0) if unix else aiohttp.TCPConnector(limit=0)
    )
    base = "http://vllm" if unix else address
    async with aiohttp.ClientSession() as through, aiohttp.ClientSession(connector=connector) as direct:
        found = []
        for number in range(rounds + 1):
            # The same prompts on neither side: one would find the other's in vLLM's prefix cache.
            mine = await _burst(through, ours.url, ours.key, "policy", f"g{number}")
            bare = await _burst(direct, base + "/v1", "x", model, f"d{number}")
            found.append((mine, bare))
        return found


async def _burst(session: aiohttp.ClientSession, url: str, key: str, model: str, name: str) -> float:
    async def one(number: int) -> int:
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": f"{name} {number}: tell a story"}],
        }
        headers = {"Authorization": f"Bearer {key}"}
        async with session.post(url + "/chat/completions", json=body | _FLAGS, headers=headers) as response:
            response.raise_for_status()
            return int((await response.json())["usage"]["completion_tokens"])

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(number) for number in range(CONCURRENT))))
    return tokens / (time.perf_counter() - began)
