"""A canned upstream: an aiohttp server with vLLM 0.32's reply shapes, and no model behind it.

It mimics `vllm/entrypoints/openai/{chat_completion,completion}`: `prompt_token_ids` on the reply (chat) or the
choice (completion), `token_ids` and `logprobs` per choice, the role chunk first in a stream, one chunk per token, an
empty delta for a control token when ids were asked for, a usage chunk, `[DONE]`. What it says is fixed: it shows
what the gateway does with a reply, not what a model would say. The real vLLM is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

PROMPT_IDS = [1, 5, 9, 70_000]
TOKENS = [(11, "Hello", -0.5), (12, " wor", -0.25), (13, "ld", -0.125), (2, "", -0.0625)]
TEXT = "Hello world"
USAGE = {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}


class CannedVllm:
    """`requests` keeps what came; `fail_next` holds statuses (or "drop") for the next requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: set[str] = set()  # of everything that came, also of what is not served here
        self.fail_next: list[int | str] = []
        self.fail_with: dict[str, Any] | None = None  # the error that comes with such a status
        self.fail_headers: dict[str, str] = {}  # and its headers
        self.gate: asyncio.Event | None = None  # holds a stream back before its second token
        self.break_after: int | None = None  # tokens of a stream before the connection is dropped
        self.break_before = 0  # so many streams are dropped after their head, before their first byte
        self.flood = 0  # so many times 64 KB of text follow a stream's first token
        self.cancelled = 0
        self.prompt_ids = list(PROMPT_IDS)
        self.said: dict[str, Any] = {}  # `reasoning` and `tool_calls` that chat says beside, or instead of, its text
        self.script: list[tuple[list[int], dict[str, Any]]] | None = None  # a chat's chunks: (token ids, delta)
        self.instead: bytes | None = None  # of a reply, or of a stream's chunks
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, unix_path: str | None = None) -> str:
        @web.middleware
        async def noted(request: web.Request, handler: Any) -> web.StreamResponse:
            self.paths.add(request.path)
            response: web.StreamResponse = await handler(request)
            return response

        app = web.Application(client_max_size=1 << 26, middlewares=[noted])
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        app.router.add_post("/v1/embeddings", self._embed)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        if unix_path:
            await web.UnixSite(self._runner, unix_path).start()
            return f"unix://{unix_path}"
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if self.fail_next:
            fail = self.fail_next.pop(0)
            if fail == "drop":
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            error = self.fail_with or {
                "message": "context is 8 tokens",
                "type": "BadRequestError",
                "param": "messages",
                "code": fail,
            }
            return web.json_response({"error": error}, status=int(fail), headers=self.fail_headers)
        if self.instead is not None:
            kind = "text/event-stream" if body.get("stream") else "application/json"
            data = b"data: " + self.instead + b"\n\ndata: [DONE]\n\n" if body.get("stream") else self.instead
            return web.Response(body=data, content_type=kind)
        try:
            chat = request.path.endswith("chat/completions")
            return await self._stream(request, body, chat) if body.get("stream") else await self._whole(body, chat)
        except (TypeError, AttributeError) as error:  # vLLM checks types and answers 400
            message = {"message": f"wrong type: {error}", "type": "BadRequestError", "param": None, "code": 400}
            return web.json_response({"error": message}, status=400)
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled += 1
            raise

    async def _embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def _whole(self, body: dict[str, Any], chat: bool) -> web.Response:
        if self.gate is not None:
            await self.gate.wait()
        if self.script is not None:
            return self._whole_script(body, self.script)
        hides = chat and self._hides(body)
        ids = [token[0] for token in TOKENS] if body.get("return_token_ids") and not hides else None
        prompt_ids = self.prompt_ids if body.get("return_token_ids") else None
        choices = []
        for index in range(_choices(body)):
            choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "stop_reason": None, "token_ids": ids}
            if chat:
                message = {"role": "assistant", "content": None if "tool_calls" in self.said else TEXT} | self.said
                choice |= {"message": message, "logprobs": _chat_logprobs(TOKENS)}
                choice["logprobs"] = choice["logprobs"] if body.get("logprobs") and not hides else None
                if hides:
                    message["reasoning"] = None
            else:
                logprobs = None if body.get("logprobs") is None else _completion_logprobs(TOKENS)
                choice |= {"text": TEXT, "logprobs": logprobs, "prompt_token_ids": prompt_ids}
            choices.append(choice)
        reply = {
            "id": "chatcmpl-canned" if chat else "cmpl-canned",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": body["model"],
            "choices": choices,
            "usage": USAGE,
            "system_fingerprint": "fp",
        }
        return web.json_response(reply | ({"prompt_token_ids": prompt_ids, "prompt_logprobs": None} if chat else {}))

    def _whole_script(self, body: dict[str, Any], script: list[tuple[list[int], dict[str, Any]]]) -> web.Response:
        ids = [token for tokens, _ in script for token in tokens]
        calls = [call for _, delta in script for call in delta.get("tool_calls", ())]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(delta.get("content", "") for _, delta in script),
        }
        if calls:
            message |= {"tool_calls": [{k: v for k, v in call.items() if k != "index"} for call in calls]}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "token_ids": ids}
        choice["logprobs"] = _chat_logprobs([(token, "", -0.5) for token in ids])
        head = {"id": "chatcmpl-canned", "object": "chat.completion", "created": 1, "model": body["model"]}
        return web.json_response(head | {"choices": [choice], "prompt_token_ids": self.prompt_ids})

    async def _stream(self, request: web.Request, body: dict[str, Any], chat: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if self.break_before:
            self.break_before -= 1
            assert request.transport is not None
            request.transport.close()
            return response
        head = {"id": "chatcmpl-canned" if chat else "cmpl-canned", "created": 1, "model": body["model"]}
        head["object"] = "chat.completion.chunk" if chat else "text_completion"
        with_ids = bool(body.get("return_token_ids")) and not self._hides(body)
        with_logprobs = bool(body.get("logprobs")) and not self._hides(body)
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))

        async def send(chunk: dict[str, Any]) -> None:
            await response.write(f"data: {json.dumps(head | chunk)}\n\n".encode())

        if chat:
            delta = {"role": "assistant", "content": ""}
            choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
            await send({"choices": [choice], "prompt_token_ids": self.prompt_ids if with_ids else None})
        if self.script is not None:
            for number, (ids, delta) in enumerate(self.script, 1):
                choice = {"index": 0, "delta": delta, "finish_reason": "stop" if number == len(self.script) else None}
                choice |= {"token_ids": ids, "logprobs": _chat_logprobs([(i, "", -0.5) for i in ids])}
                await send({"choices": [choice]})
            await response.write(b"data: [DONE]\n\n")
            return response
        for i, token in enumerate(TOKENS):
            if i == 1 and self.gate is not None:
                await self.gate.wait()
            if i == self.break_after:
                assert request.transport is not None
                request.transport.close()
                return response
            hidden = self._hides(body) and i == 0
            if chat and (i == 1 or hidden) and not with_ids and not with_logprobs:
                continue  # a control token has no text; its chunk exists only for its id and its logprob
            choice = {"index": 0, "finish_reason": "stop" if i == len(TOKENS) - 1 else None}
            if chat:
                choice |= {"delta": self._delta(i, token[1])}
                choice["logprobs"] = _chat_logprobs([token]) if with_logprobs else None
            else:
                choice |= {"text": token[1], "prompt_token_ids": self.prompt_ids if with_ids and i == 0 else None}
                choice["logprobs"] = None if body.get("logprobs") is None else _completion_logprobs([token])
            choice["token_ids"] = [token[0]] if with_ids else None
            last = choice["finish_reason"] is not None and not with_usage
            await send({"choices": [choice]} | ({"system_fingerprint": "fp"} if last else {}))
            for _ in range(self.flood if i == 0 else 0):
                await send({"choices": [{"index": 0, "delta": {"content": "x" * 65536}, "finish_reason": None}]})
        if with_usage:
            await send({"choices": [], "usage": USAGE, "system_fingerprint": "fp"})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _hides(self, body: dict[str, Any]) -> bool:
        """With its reasoning vLLM hides every token id and logprob."""
        return body.get("include_reasoning") is False and "reasoning" in self.said

    def _delta(self, number: int, text: str) -> dict[str, Any]:
        """Of one token: reasoning first, then tool calls in two chunks, or else the text."""
        if number == 1:
            return {}
        if number == 0 and "reasoning" in self.said:
            return {"reasoning": self.said["reasoning"]}
        if "tool_calls" not in self.said:
            return {"content": text}
        deltas = []
        for index, call in enumerate(self.said["tool_calls"]):
            arguments = call["function"]["arguments"]
            last = index == len(self.said["tool_calls"]) - 1
            half = len(arguments) // 2 if last else len(arguments)
            if number == 2:
                deltas.append({**call, "index": index, "function": call["function"] | {"arguments": arguments[:half]}})
            elif number == 3 and last:
                deltas.append({"index": index, "function": {"arguments": arguments[half:]}})
        return {"tool_calls": deltas} if deltas else {}


def _choices(body: dict[str, Any]) -> int:
    n = body.get("n") or 1
    if not 0 < n <= 16_384:  # vLLM's own bound
        raise TypeError(f"n: {n}")
    return int(n)


def _chat_logprobs(tokens: list[tuple[int, str, float]]) -> dict[str, Any]:
    return {
        "content": [{"token": t, "logprob": p, "bytes": list(t.encode()), "top_logprobs": []} for _, t, p in tokens]
    }


def _completion_logprobs(tokens: list[tuple[int, str, float]]) -> dict[str, Any]:
    return {
        "text_offset": [0] * len(tokens),
        "token_logprobs": [p for _, _, p in tokens],
        "tokens": [t for _, t, _ in tokens],
        "top_logprobs": [{t: p} for _, t, p in tokens],
    }
