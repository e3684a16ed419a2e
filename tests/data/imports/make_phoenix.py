"""Writes phoenix.json and phoenix_otlp.json by the real Phoenix and OpenInference, and openinference_otlp.json beside it.

pip install arize-phoenix openinference-instrumentation-openai openai; phoenix serve; python make_phoenix.py http://127.0.0.1:6006
"""

# mypy: ignore-errors
from __future__ import annotations

import base64
import http.server
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import openai
from google.protobuf.json_format import MessageToDict
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

CALL = {"id": "c1", "type": "function", "function": {"name": "calc", "arguments": '{"expression": "12*7"}'}}
TOOL = {"type": "function", "function": {"name": "calc", "parameters": {"type": "object", "properties": {}}}}
REPLIES = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "assistant", "content": "84"}]


class Model(http.server.BaseHTTPRequestHandler):
    """Answers with REPLIES, one after another."""

    calls = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        choice = {"index": 0, "finish_reason": "stop", "message": REPLIES[Model.calls % 2]}
        Model.calls += 1
        reply = {"id": f"chatcmpl-{Model.calls}", "object": "chat.completion", "created": 1, "model": "gpt-4o"}
        body = json.dumps(reply | {"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


phoenix = sys.argv[1]
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
threading.Thread(target=server.serve_forever, daemon=True).start()
kept, provider = InMemorySpanExporter(), TracerProvider()
for exporter in (kept, OTLPSpanExporter(f"{phoenix}/v1/traces")):
    provider.add_span_processor(SimpleSpanProcessor(exporter))
OpenAIInstrumentor().instrument(tracer_provider=provider)
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
tracer = provider.get_tracer("agent")
role = "openinference.span.kind"
with tracer.start_as_current_span("solver", attributes={role: "AGENT", "input.value": "What is 12*7?"}) as span:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 12*7?"}]
    client.chat.completions.create(model="gpt-4o", messages=messages, tools=[TOOL])
    asked = {role: "TOOL", "tool.name": "calc", "input.value": '{"expression": "12*7"}', "output.value": "84"}
    tracer.start_span("calc", attributes=asked).end()
    messages += [REPLIES[0], {"role": "tool", "tool_call_id": "c1", "content": "84"}]
    client.chat.completions.create(model="gpt-4o", messages=messages, tools=[TOOL])
    span.set_attribute("output.value", "84")
request = MessageToDict(encode_spans(kept.get_finished_spans()))
for one in request["resourceSpans"][0]["scopeSpans"]:
    for each in one["spans"]:
        for key in each.keys() & {"traceId", "spanId", "parentSpanId"}:
            each[key] = base64.b64decode(each[key]).hex()
Path("openinference_otlp.json").write_text(json.dumps(request) + "\n")
time.sleep(3)  # Phoenix stores them in the background
for name, path in (("phoenix", "spans"), ("phoenix_otlp", "spans/otlpv1")):
    with urllib.request.urlopen(f"{phoenix}/v1/projects/default/{path}?limit=100") as answer:
        Path(f"{name}.json").write_bytes(answer.read() + b"\n")
