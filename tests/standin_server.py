"""A stand-in for the server, for tests that need no model: answers chat completions from a list or a function and
records every OTLP request (JSON or protobuf). It checks tokens as the server does, and fails on request."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class RecordedSpan:
    path: str
    name: str
    resource: dict[str, Any]
    attributes: dict[str, Any]
    raw: dict[str, Any]


class Standin(ThreadingHTTPServer):
    """`spans` and `calls` are what arrived; `fail` holds (status, headers) of the next OTLP requests to refuse."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, reply: Callable[[list[dict[str, Any]]], str], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.reply = reply
        self.spans: list[RecordedSpan] = []
        self.calls: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.fail: list[tuple[int, dict[str, str]]] = []
        self.tokens: set[str] | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, name: str) -> list[RecordedSpan]:
        return [span for span in self.spans if span.name == name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Standin

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.tokens is not None and token not in self.server.tokens:
            self._answer(401, {"error": "unknown token"})
        elif self.path.endswith("/v1/traces"):
            self._traces(body)
        elif self.path.endswith("/v1/chat/completions"):
            self._chat(json.loads(body))
        else:
            self._answer(404, {"error": self.path})

    def _traces(self, body: bytes) -> None:
        with self.server.lock:
            self.server.headers.append({name.title(): value for name, value in self.headers.items()})
            if self.server.fail:
                status, headers = self.server.fail.pop(0)
                return self._answer(status, {"error": "asked to fail"}, headers)
        as_json = self.headers.get("Content-Type", "").startswith("application/json")
        message = json.loads(body) if as_json else _as_json(body)
        found = []
        for group in message.get("resourceSpans", []):
            resource = _attributes(group.get("resource", {}))
            for scope in group["scopeSpans"]:
                found += [
                    RecordedSpan(self.path, s["name"], resource, _attributes(s), s) for s in scope.get("spans", [])
                ]
        with self.server.lock:
            self.server.spans += found
        self._answer(200, {})
        return None

    def _chat(self, request: dict[str, Any]) -> None:
        with self.server.lock:
            self.server.calls.append(request)
            number = len(self.server.calls)
        message = {"role": "assistant", "content": self.server.reply(request["messages"])}
        self._answer(
            200,
            {
                "id": f"chatcmpl-{number}",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            },
        )

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _as_json(body: bytes) -> dict[str, Any]:
    """The request as OTLP/JSON has it: ids in hex, enums as numbers."""
    message = MessageToDict(ExportTraceServiceRequest.FromString(body), use_integers_for_enums=True)
    for group in message.get("resourceSpans", []):
        for span in (span for scope in group["scopeSpans"] for span in scope.get("spans", [])):
            span |= {
                key: base64.b64decode(span[key]).hex() for key in ("traceId", "spanId", "parentSpanId") if key in span
            }
    return message


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for item in holder.get("attributes", []):
        ((kind, value),) = item["value"].items() or [("stringValue", "")]
        values[item["key"]] = int(value) if kind == "intValue" else value
    return values


@contextmanager
def standin(reply: Callable[[list[dict[str, Any]]], str] = lambda _: "", port: int = 0) -> Iterator[Standin]:
    """A running stand-in; ended with the block."""
    server = Standin(reply, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
