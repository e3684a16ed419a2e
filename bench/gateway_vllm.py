"""Tokens a second of a real vLLM, direct and through the gateway: interleaved pairs, the same flags on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from bench.gateway_load import Endpoint
from bench.report import say
from lightning_core.config import VllmSettings
from lightning_core.policies.model import ModelError, resolve_model
from lightning_core.policies.vllm import VllmServer

CONCURRENT, TOKENS = 32, 48
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_FLAGS = {"logprobs": True, "return_token_ids": True, "ignore_eos": True, "max_tokens": TOKENS, "temperature": 1.0}


@contextlib.contextmanager
def own_vllm(home: Path) -> Iterator[tuple[str, str] | None]:
    """(address, the name it serves) of a vLLM with the demo's model; None where there is no such model to be had."""
    try:
        model = resolve_model(MODEL, None, say)
    except ModelError as error:
        say(f"no model for vLLM: its figure is left out ({error})")
        yield None
        return
    settings = VllmSettings(max_model_len=512, max_num_seqs=CONCURRENT)
    vllm = VllmServer.start(settings, model.path, "smol", home=home, on_progress=say)
    try:
        yield vllm.upstream, "smol"
    finally:
        vllm.stop()


def tokens_a_second(ours: Endpoint, address: str, model: str, rounds: int) -> list[tuple[float, float]]:
    """(through the gateway, direct), a pair a round; the first pair warms up and is not among them."""
    return asyncio.run(_pairs(ours, address, model, rounds))[1:]


async def _pairs(ours: Endpoint, address: str, model: str, rounds: int) -> list[tuple[float, float]]:
    unix = address.startswith("unix://")
    base = "http://vllm" if unix else address
    # A connection a request: vLLM closes those that idle for 5 s, which is less than the other side's turn takes.
    options: Any = {"limit": 0, "force_close": True}
    connector: aiohttp.BaseConnector = aiohttp.TCPConnector(**options)
    if unix:
        connector = aiohttp.UnixConnector(address.removeprefix("unix://"), **options)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(**options)) as through,
        aiohttp.ClientSession(connector=connector) as direct,
    ):
        sides = {
            "g": (through, ours.url, ours.key, "policy"),
            "d": (direct, base + "/v1", "x", model),
        }
        found = []
        for number in range(rounds + 1):
            rates = {}
            for side in sorted(sides, reverse=number % 2 == 0):  # who is first takes turns too
                # The same prompts on neither side: one would find the other's in vLLM's prefix cache.
                rates[side] = await _burst(*sides[side], f"{side}{number}")
            found.append((rates["g"], rates["d"]))
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
