"""Sending chat completions over many connections, with as little of our own time in the figures as Python allows."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvloop


@dataclass(frozen=True)
class Endpoint:
    """Where calls go: a base URL with /v1, and what opens it."""

    url: str
    key: str = "x"
    extra: dict[str, Any] = field(default_factory=dict)  # fields of the body

    def request(self, size: int, **fields: Any) -> bytes:
        """A whole HTTP request whose body has about `size` bytes."""
        body: dict[str, Any] = {
            "model": "policy",
            "messages": [{"role": "user", "content": ""}],
            **self.extra,
            **fields,
        }
        body["messages"][0]["content"] = "word " * max(1, (size - len(json.dumps(body))) // 5)
        data, parts = json.dumps(body, separators=(",", ":")).encode(), urlsplit(self.url)
        head = f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {self.key}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80


def closed_loop(endpoint: Endpoint, seconds: float, connections: int, size: int = 2048) -> float:
    """Requests a second with as many always under way."""
    return uvloop.run(_closed_loop(endpoint, seconds, connections, size))


async def _closed_loop(endpoint: Endpoint, seconds: float, connections: int, size: int) -> float:
    request, done = endpoint.request(size), 0
    pipes = [await asyncio.open_connection(*endpoint.address, limit=1 << 20) for _ in range(connections)]
    began = time.perf_counter()

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            writer.write(request)
            await _whole(reader)
            done += 1

    await asyncio.gather(*(work(*pipe) for pipe in pipes))
    took = time.perf_counter() - began
    _close(pipes)
    return done / took


def latencies(endpoint: Endpoint, a_second: float, seconds: float, size: int = 2048) -> list[float]:
    """Milliseconds of requests that are begun at an even pace, whatever became of those before; sorted."""
    return sorted(uvloop.run(_latencies(endpoint, a_second, seconds, size)))


async def _latencies(endpoint: Endpoint, a_second: float, seconds: float, size: int) -> list[float]:
    request, took = endpoint.request(size), []
    idle: list[Any] = [await asyncio.open_connection(*endpoint.address, limit=1 << 20) for _ in range(32)]

    async def one() -> None:
        began = time.perf_counter()
        pipe = idle.pop() if idle else await asyncio.open_connection(*endpoint.address, limit=1 << 20)
        pipe[1].write(request)
        await _whole(pipe[0])
        took.append((time.perf_counter() - began) * 1000)
        idle.append(pipe)

    began, tasks = time.perf_counter(), []
    for number in range(int(a_second * seconds)):
        await asyncio.sleep(max(0.0, began + number / a_second - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    _close(idle)
    return took


@dataclass
class Streams:
    whole: int = 0
    dropped: int = 0
    delays_ms: list[float] = field(default_factory=list)  # from the upstream's write to here, a chunk each; sorted


def streams(endpoint: Endpoint, count: int, chunks: int, pause_ms: int) -> Streams:
    """So many streams at one time, each of `chunks` chunks with a pause between."""
    return uvloop.run(_streams(endpoint, count, chunks, pause_ms))


async def _streams(endpoint: Endpoint, count: int, chunks: int, pause_ms: int) -> Streams:
    request, found = endpoint.request(512, stream=True, max_tokens=chunks, seed=pause_ms), Streams()

    async def one(number: int) -> None:
        await asyncio.sleep(number * pause_ms / 1000 / count)  # spread, as real streams are
        try:
            reader, writer = await asyncio.open_connection(*endpoint.address, limit=1 << 20)
            writer.write(request)
            ended = False
            while not ended and (line := await reader.readline()):
                if line.startswith(b"data: {") and b'"content":' in line:
                    text = json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    now = time.monotonic_ns()
                    found.delays_ms += [(now - int(sent)) / 1e6 for sent in text.split()[:1]]
                ended = line.startswith(b"data: [DONE]")
            writer.close()
        except OSError:
            ended = False
        found.whole += ended
        found.dropped += not ended

    await asyncio.gather(*(one(number) for number in range(count)))
    found.delays_ms.sort()
    return found


async def _whole(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"the answer was {head[:200]!r} {(await reader.read(500))!r}")
    at = head.find(b"content-length:")
    if at >= 0:
        await reader.readexactly(int(head[at + 15 :].split(b"\r\n", 1)[0]))
        return
    while size := int((await reader.readline()).strip() or b"0", 16):
        await reader.readexactly(size + 2)
    await reader.readline()


def _close(pipes: list[Any]) -> None:
    for _, writer in pipes:
        writer.close()


def at(values: list[float], share: float) -> float:
    """A quantile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))]
