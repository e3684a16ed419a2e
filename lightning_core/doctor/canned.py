"""A model that always answers the same: what the doctor puts behind the gateway where no vLLM runs.

Replies have vLLM's shape, with token ids and logprobs (of no model: they are hashes of words). Tools are never called.
"""

from __future__ import annotations

import json
import threading
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = "The answer is 5."


@contextmanager
def canned_model() -> Iterator[str]:
    """Serve the canned model while the block runs; give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, name="canned-model", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/embeddings"):
            self._answer({"object": "list", "model": body["model"], "data": [_embedding()], "usage": _usage(1, 0)})
            return
        reply = _reply(body, chat=self.path.endswith("/chat/completions"))
        if not body.get("stream"):
            self._answer(reply)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(f"data: {json.dumps(_as_chunk(reply))}\n\ndata: [DONE]\n\n".encode())
        self.close_connection = True

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the gateway has a log."""


def _reply(body: dict[str, Any], chat: bool) -> dict[str, Any]:
    prompt, answer_ids = _ids(json.dumps(body.get("messages") or body.get("prompt"))), _ids(ANSWER)
    choices: list[dict[str, Any]] = []
    for index in range(body.get("n") or 1):
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "token_ids": answer_ids}
        if chat:
            content = [{"token": "", "logprob": -0.5, "bytes": [], "top_logprobs": []} for _ in answer_ids]
            choice |= {"message": {"role": "assistant", "content": ANSWER}, "logprobs": {"content": content}}
        else:
            choice |= {
                "text": ANSWER,
                "logprobs": {"token_logprobs": [-0.5] * len(answer_ids)},
                "prompt_token_ids": prompt,
            }
        choices.append(choice)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-canned-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1,
        "model": body["model"],
        "choices": choices,
        "usage": _usage(len(prompt), len(answer_ids)),
        "prompt_token_ids": prompt,
    }


def _as_chunk(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the whole reply as the one chunk of a stream."""
    choices = [{k: v for k, v in choice.items() if k != "message"} for choice in reply["choices"]]
    for chunk, choice in zip(choices, reply["choices"], strict=True):
        if "message" in choice:
            chunk["delta"] = choice["message"]
    kind = "chat.completion.chunk" if reply["object"] == "chat.completion" else "text_completion"
    return reply | {"object": kind, "choices": choices}


def _ids(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % 30_000 for word in text.split()] or [0]


def _embedding() -> dict[str, Any]:
    return {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
