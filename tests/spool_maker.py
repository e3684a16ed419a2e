"""Homes with a spool, filled with requests as a server would have stored them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_core import names
from lightning_core.lake.lake import Lake
from lightning_core.otlp.spans import SpanData, encode_request, float32_bytes, int32_bytes
from lightning_core.spool.spool import Record, SpoolWriter


def record(body: bytes, rollout: str | None = "r.1", attempt: str | None = "a1", received_ns: int = 5) -> Record:
    return Record(rollout, attempt, "path" if rollout else "none", received_ns, "otlp", body)


def store(home: Path, records: Iterable[Record]) -> None:
    """Append records to the home's spool, as the server does."""

    async def write() -> None:
        writer = SpoolWriter(home / "spool", 1 << 30)
        for one in records:
            await writer.append(one)
        writer.close()

    asyncio.run(write())


def append_all(writer: SpoolWriter, bodies: list[bytes]) -> list[int]:
    """Append bodies side by side; returns where each record ends."""

    async def main() -> list[int]:
        return list(await asyncio.gather(*(writer.append(record(body)) for body in bodies)))

    return asyncio.run(main())


def written(directory: Path, bodies: list[bytes], **options: int) -> list[int]:
    """Make a spool of these bodies; returns where each record ends."""
    writer = SpoolWriter(directory, **({"max_bytes": 1 << 30} | options))
    ends = append_all(writer, bodies)
    writer.close()
    return ends


def span(name: str = "step", number: int = 1, start_ns: int = 1_000, /, **attributes: Any) -> SpanData:
    return SpanData(name, start_ns, start_ns + 1_000, "01" * 16, f"{number:016x}", attributes=dict(attributes))


def rollout_spans(
    rollout: str, run: str = "run", epoch: int = 0, mode: str = "train", reward: float = 1.0
) -> list[SpanData]:
    """A whole attempt: start, one call of the policy, a reward, the root."""
    scope = {names.RUN: run, names.EPOCH: epoch, names.MODE: mode, names.GROUP_ID: "g", names.TASK_ID: "t"}
    call = {
        names.POLICY: "policy",
        names.POLICY_VERSION: "v0000",
        names.GEN_AI_OPERATION: "chat",
        names.GEN_AI_RESPONSE_ID: f"chatcmpl-{rollout}",
        names.GEN_AI_INPUT_MESSAGES: '[{"role": "user", "content": "2+2?"}]',
        names.GEN_AI_OUTPUT_MESSAGES: '[{"role": "assistant", "content": "4"}]',
        names.PROMPT_TOKEN_IDS: int32_bytes([1, 2, 3]),
        names.RESPONSE_TOKEN_IDS: int32_bytes([4, 5]),
        names.RESPONSE_LOGPROBS: float32_bytes([-0.1, -0.2]),
    }
    return [
        span(names.SPAN_ROLLOUT_START, 1, 1_000, **scope),
        span("chat policy", 2, 2_000, **call),
        span(names.SPAN_REWARD, 3, 3_000, **{names.REWARD: reward, names.REWARD_SOURCE: "grader"}),
        span(names.SPAN_ROLLOUT, 4, 500, **scope, **{names.STATUS: "ok"}),
    ]


def store_rollout(home: Path, rollout: str, received_ns: int = 5, **scope: Any) -> None:
    store(home, [record(encode_request({}, rollout_spans(rollout, **scope)), rollout, received_ns=received_ns)])


def rollouts(home: Path, *names: str, **scope: Any) -> Lake:
    """A lake with one file a rollout."""
    lake = Lake(home)
    for name in names:
        store_rollout(home, name, **scope)
        lake.ingest()
    return lake
