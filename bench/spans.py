"""Spans to measure with: large ones as an LLM call leaves them, small ones as tools and agents do.

A large span is 9 KB in OTLP: 22 attributes, messages, tool definitions, 620 token ids, 120 logprobs. What an agent
says anew each time (system prompt, tools, the first 180 prompt tokens) is one of eight texts; all else is drawn for
each span: words by Zipf's law from a made-up vocabulary, a token id a word. Real conversations repeat their earlier
turns and compress better. A small span is 0.6 KB with 11 attributes.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

import numpy as np
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

Kind = Literal["large", "small"]
IdEncoding = Literal["bytes", "array", "json"]
SPANS_A_REQUEST = 512  # the batch of OpenTelemetry's span processors
SHARED_TOKENS, OWN_TOKENS, RESPONSE_TOKENS = 180, 320, 120
AGENTS = ("planner", "researcher", "coder", "critic", "router", "summariser", "browser", "grader")
TOOLS = ("search", "open_page", "run_python", "read_file", "calculator", "ask_database")
_BEGIN_NS = 1_790_000_000_000_000_000
_VOCABULARY = 12_000


@cache
def _vocabulary() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(words, their cumulative probability, token id of each); frequent words are short, as in a language."""
    rng = np.random.default_rng(7)
    onsets = np.array(["", "b", "ch", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w"])
    vowels, codas = np.array(["a", "e", "i", "o", "u", "ea", "ou"]), np.array(["", "n", "r", "s", "t", "l", "nd", "ck"])

    def words(syllables: int) -> np.ndarray:
        parts = [np.char.add(np.char.add(rng.choice(onsets, 30_000), rng.choice(vowels, 30_000)), rng.choice(codas, 30_000)) for _ in range(syllables)]  # fmt: skip
        whole = parts[0]
        for part in parts[1:]:
            whole = np.char.add(whole, part)
        return whole

    _, first = np.unique(made := np.concatenate([words(1), words(2), words(3)]), return_index=True)
    chosen = made[np.sort(first)][:_VOCABULARY]
    weight = 1 / (np.arange(len(chosen)) + 2.7)
    return chosen, np.cumsum(weight / weight.sum()), rng.permutation(49_152)[: len(chosen)]


class Text:
    """Draws texts and the token ids that stand for them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._words, self._cumulative, self._ids = _vocabulary()

    def draw(self, tokens: int) -> tuple[str, np.ndarray]:
        """(text, token ids): `tokens` words, a stop about every twelve."""
        picked = np.minimum(np.searchsorted(self._cumulative, self.rng.random(tokens)), len(self._words) - 1)
        words = self._words[picked].tolist()
        for at in range(11, tokens, 12):
            words[at] += "."
        return " ".join(words), self._ids[picked].astype("<i4")

    def hex(self, digits: int) -> str:
        return self.rng.bytes(digits // 2).hex()

    def number(self, below: int) -> int:
        return int(self.rng.integers(below))


@cache
def _agents() -> list[dict[str, Any]]:
    """What each agent says anew with each call."""
    text = Text(11)
    agents = []
    for name in AGENTS:
        system, ids = text.draw(SHARED_TOKENS)
        tools = [
            {
                "type": "function",
                "function": {
                    "name": tool,
                    "description": text.draw(14)[0],
                    "parameters": {
                        "type": "object",
                        "properties": {k: {"type": "string", "description": text.draw(6)[0]} for k in ("query", "how")},
                        "required": ["query"],
                    },
                },
            }
            for tool in TOOLS[:3]
        ]
        agents.append({"name": name, "id": text.hex(32), "system": system, "ids": ids, "tools": json.dumps(tools)})
    return agents


def large_span(text: Text, number: int, trace_id: bytes, parent: bytes, ids: IdEncoding) -> Span:
    agent = _agents()[text.number(len(AGENTS))]
    asked, asked_ids = text.draw(OWN_TOKENS)
    response, response_ids = text.draw(RESPONSE_TOKENS)
    call = {"id": f"call_{text.hex(24)}", "type": "function", "function": {"name": TOOLS[text.number(3)]}}
    found = {"url": f"https://example.org/{text.hex(16)}", "score": float(text.rng.random()), "rows": text.number(9999)}
    cut = len(asked) // 2
    messages = [
        {"role": "system", "content": agent["system"]},
        {"role": "user", "content": asked[:cut]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(found | {"text": asked[cut:]})},
    ]
    logprobs = -text.rng.exponential(0.6, RESPONSE_TOKENS).astype("<f4")
    begin = _BEGIN_NS + number * 1_000_000 + text.number(900_000)
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "policy",
        "gen_ai.response.model": "policy-v0003",
        "gen_ai.response.id": f"chatcmpl-{text.hex(32)}",
        "gen_ai.response.finish_reasons": '["stop"]',
        "gen_ai.usage.input_tokens": SHARED_TOKENS + OWN_TOKENS,
        "gen_ai.usage.output_tokens": RESPONSE_TOKENS,
        "gen_ai.conversation.id": text.hex(32),
        "gen_ai.agent.name": agent["name"],
        "gen_ai.agent.id": agent["id"],
        "gen_ai.tool.definitions": agent["tools"],
        "gen_ai.input.messages": json.dumps(messages),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "content": response}]),
        "lightning.policy": "policy",
        "lightning.policy_version": "v0003",
        "lightning.sampling": '{"temperature":1.0,"top_p":1.0,"max_tokens":512}',
        "lightning.requested_sampling": '{"temperature":0.2}',
        "lightning.first_token_ms": float(text.rng.gamma(4, 20)),
        "lightning.prompt_token_ids": numbers(np.concatenate([agent["ids"], asked_ids]), ids),
        "lightning.response_token_ids": numbers(response_ids, ids),
        "lightning.response_logprobs": numbers(logprobs, ids),
    }
    return _span("chat policy", text, trace_id, parent, (begin, begin + 800_000_000), attributes)


def small_span(text: Text, number: int, trace_id: bytes, parent: bytes) -> Span:
    agent, tool = _agents()[text.number(len(AGENTS))], TOOLS[text.number(len(TOOLS))]
    begin = _BEGIN_NS + number * 1_000_000 + text.number(900_000)
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.agent.name": agent["name"],
        "gen_ai.agent.id": agent["id"],
        "gen_ai.tool.name": tool,
        "gen_ai.tool.call.id": f"call_{text.hex(24)}",
        "gen_ai.tool.call.arguments": json.dumps({"query": text.draw(5)[0]}),
        "gen_ai.tool.call.result": text.draw(12)[0],
        "session.id": text.hex(32),
        "thread.id": 139_000_000_000_000 + text.number(64) * 4096,
        "code.function.name": f"tools.{tool}",
        "tool.cached": text.number(4) == 0,
    }
    return _span(f"execute_tool {tool}", text, trace_id, parent, (begin, begin + 30_000_000), attributes)


def request_spans(kind: Kind, seed: int, n: int, ids: IdEncoding = "bytes") -> bytes:
    """`n` spans of one trace as the `scope_spans` of a request, to be put into `request`. The same seed, the same bytes."""
    text = Text(seed)
    trace_id = text.rng.bytes(16)
    spans: list[Span] = []
    for number in range(n):
        parent = spans[number - 1 - number % 7].span_id if number else b""
        at = seed * 300 + number  # requests follow one another, and overlap
        made = large_span(text, at, trace_id, parent, ids) if kind == "large" else small_span(text, at, trace_id, parent)  # fmt: skip
        spans.append(made)
    scope_spans = ScopeSpans(spans=spans)
    scope_spans.scope.name, scope_spans.scope.version = "bench", "1.0"
    return ResourceSpans(scope_spans=[scope_spans]).SerializeToString()


def request(spans: bytes, resource: dict[str, str]) -> bytes:
    """An `ExportTraceServiceRequest`. Fields of a protobuf message may follow one another in any order, so no span is
    encoded again."""
    attributes = [_key_value(k, v) for k, v in {"service.name": "bench", "telemetry.sdk.language": "python", **resource}.items()]  # fmt: skip
    content = ResourceSpans(resource=Resource(attributes=attributes)).SerializeToString() + spans
    return b"\x0a" + _varint(len(content)) + content


class Template:
    """A request to be sent many times, each time as other spans: later, and under other ids. Texts stay."""

    def __init__(self, spans: bytes) -> None:
        self._body = np.frombuffer(request(spans, {}), np.uint8)
        whole = self._body.tobytes()
        times, ids = [], []
        at = 0
        for span in ResourceSpans.FromString(spans).scope_spans[0].spans:
            at = whole.index(b"\x0a\x10" + span.trace_id + b"\x12\x08" + span.span_id, at)
            ids += [at + 2, at + 10, at + 20]
            if span.parent_span_id:
                ids.append(whole.index(b"\x22\x08" + span.parent_span_id, at) + 2)
            for tag, value in ((b"\x39", span.start_time_unix_nano), (b"\x41", span.end_time_unix_nano)):
                times.append(whole.index(tag + value.to_bytes(8, "little"), at) + 1)
        self._times, self._ids = (np.array(x)[:, None] + np.arange(8) for x in (times, ids))

    def shifted(self, number: int) -> bytes:
        """The request `number` tenths of a second later, its ids mixed with `number`."""
        body = self._body.copy()
        later = body[self._times].view("<u8") + np.uint64(number * 100_000_000)
        body[self._times] = later.view(np.uint8)
        body[self._ids] ^= np.frombuffer((number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little"), np.uint8)
        return body.tobytes()


def numbers(values: np.ndarray, encoding: IdEncoding) -> Any:
    """A token array as one of the three kinds of attribute that emitters write."""
    if encoding == "bytes":
        return values.tobytes()
    return values.tolist() if encoding == "array" else json.dumps(values.tolist())


def _span(name: str, text: Text, trace_id: bytes, parent: bytes, times: tuple[int, int], attributes: Any) -> Span:
    return Span(
        name=name,
        trace_id=trace_id,
        span_id=text.rng.bytes(8),
        parent_span_id=parent,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=times[0],
        end_time_unix_nano=times[1],
        attributes=[_key_value(k, v) for k, v in attributes.items()],
    )


def _key_value(key: str, value: Any) -> KeyValue:
    return KeyValue(key=key, value=_any_value(value))


def _any_value(value: Any) -> AnyValue:
    if isinstance(value, list):
        made = AnyValue()
        made.array_value.values.extend(map(_any_value, value))
        return made
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    return AnyValue(**{kinds[type(value)]: value})


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))
