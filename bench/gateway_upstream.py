"""A model server that answers at once: fixed bytes, so that what is measured is the gateway.

    python -m bench.gateway_upstream     prints its port; ends with its stdin

A request with `return_token_ids` gets vLLM's shape with ids and logprobs, another one OpenAI's plain shape. A stream's
chunks carry the moment they were sent as their text; `"max_tokens": n` is how many there are, `"seed": ms` the time between.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

TOKENS = 32


class Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self._rest = b""
        self._transport: Any = None
        self._streams: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        for task in self._streams:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (head := self._rest.find(b"\r\n\r\n")) >= 0:
            fields = self._rest[:head].lower()
            at = fields.find(b"content-length:")
            length = int(fields[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._rest) < head + 4 + length:
                return
            body, self._rest = self._rest[head + 4 : head + 4 + length], self._rest[head + 4 + length :]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        with_ids = b'"return_token_ids":true' in body
        if b'"stream":true' in body or b'"stream": true' in body:
            task = asyncio.create_task(self._stream(json.loads(body), with_ids))
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        else:
            self._transport.write(WITH_IDS if with_ids else PLAIN)

    async def _stream(self, request: dict[str, Any], with_ids: bool) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._chunk(
            {"delta": {"role": "assistant", "content": ""}}, with_ids, head, {"prompt_token_ids": list(range(500))}
        )
        count = request.get("max_tokens") or TOKENS
        # In evaluation the gateway keeps the client's `seed`; here it is the milliseconds between two chunks.
        pause = (request.get("seed") or 0) / 1000
        for number in range(count):
            await asyncio.sleep(pause)
            text = f"{time.monotonic_ns()} "
            choice: dict[str, Any] = {"delta": {"content": text}}
            if with_ids:
                choice |= {"token_ids": [number], "logprobs": {"content": [{"token": "x", "logprob": -0.5}]}}
            self._chunk(choice, with_ids)
        self._chunk({"delta": {}, "finish_reason": "stop"}, with_ids)
        self._transport.write(_framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _chunk(
        self, choice: dict[str, Any], with_ids: bool, head: bytes = b"", more: dict[str, Any] | None = None
    ) -> None:
        chunk = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": "policy"}
        chunk |= {"choices": [{"index": 0, "finish_reason": None} | choice]} | ((more or {}) if with_ids else {})
        self._transport.write(head + _framed(b"data: " + json.dumps(chunk).encode() + b"\n\n"))


def _framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _whole(with_ids: bool) -> bytes:
    message = {"role": "assistant", "content": "word " * TOKENS}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    reply: dict[str, Any] = {"id": "chatcmpl-x", "object": "chat.completion", "created": 1, "model": "policy"}
    reply |= {"choices": [choice], "usage": {"prompt_tokens": 500, "completion_tokens": TOKENS, "total_tokens": 532}}
    if with_ids:
        entry = {"token": " word", "logprob": -0.5, "bytes": list(b" word"), "top_logprobs": []}
        choice |= {"token_ids": list(range(TOKENS)), "logprobs": {"content": [entry] * TOKENS}}
        reply["prompt_token_ids"] = list(range(500))
    body = json.dumps(reply).encode()
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


WITH_IDS, PLAIN = _whole(True), _whole(False)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve())
