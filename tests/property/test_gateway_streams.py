"""However the network cuts a stream, and whatever an agent asks for, the gateway sees and hides the same."""

from __future__ import annotations

import json
from array import array
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lightning_core.gateway.attempt_tokens import AttemptScope, mint, verify
from lightning_core.gateway.reply import Collected, take_chunk
from lightning_core.gateway.routes import Route
from lightning_core.gateway.sampling import prepare
from lightning_core.gateway.sse import SseParser
from lightning_core.otlp.spans import SpanData, encode_request
from tests.decoding import pair

ROUTE = Route(upstream="http://127.0.0.1:1", model="served", version="v0003")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text, st.lists, max_leaves=4
)


@given(
    events=st.lists(st.binary(max_size=30).filter(lambda b: b and b"\n" not in b and b"\r" not in b), max_size=8),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    data=st.data(),
)
def test_events_are_the_same_however_the_bytes_are_cut(
    events: list[bytes], newline: bytes, data: st.DataObject
) -> None:
    stream = b"".join(b": comment" + newline + b"data: " + event + newline * 2 for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    parser = SseParser()
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [event for part in parts for event in parser.feed(part)] == events


@given(
    tokens=st.lists(st.tuples(st.integers(0, 2**31 - 1), text, st.floats(-99, 0)), min_size=1, max_size=12),
    wants=st.fixed_dictionaries({"logprobs": st.booleans(), "return_token_ids": st.booleans()}),
)
def test_a_stream_keeps_its_text_and_shows_only_what_was_asked(tokens: list[Any], wants: dict[str, bool]) -> None:
    prepared = prepare({"model": "p", "messages": [], "stream": True} | wants, "chat", ROUTE, "train", "served")
    into, shown = Collected(), []
    for token, piece, logprob in tokens:
        choice = {"index": 0, "delta": {"content": piece} if piece else {}, "token_ids": [token]}
        chunk: dict[str, Any] = {"id": "x", "model": "served"}
        chunk["choices"] = [choice | {"logprobs": {"content": [{"token": piece, "logprob": logprob}]}}]
        taken = take_chunk(chunk, prepared, "p", into)
        if taken is not None:
            shown.append(taken["choices"][0])
    assert list(into.ordered()[0].token_ids) == [token for token, _, _ in tokens]
    assert into.ordered()[0].logprobs == array("f", [logprob for _, _, logprob in tokens])
    assert "".join(c["delta"].get("content", "") for c in shown) == "".join(piece for _, piece, _ in tokens)
    assert all((c["token_ids"] is not None) == wants["return_token_ids"] for c in shown)
    assert all((c["logprobs"] is not None) == wants["logprobs"] for c in shown)


KEYS = [
    "temperature",
    "top_p",
    "n",
    "max_tokens",
    "tools",
    "tool_choice",
    "stream_options",
    "response_format",
    "prompt",
]


@given(request=st.dictionaries(st.sampled_from(KEYS), values | st.dictionaries(text, values, max_size=3)))
def test_any_request_is_rewritten_or_left_for_vllm_to_refuse(request: dict[str, Any]) -> None:
    for kind in ("chat", "completions"):
        for mode in ("train", "evaluate"):
            prepared = prepare(request, kind, ROUTE, mode, "served")
            json.dumps(prepared.body)
            assert mode == "evaluate" or prepared.body["temperature"] == 1.0


@given(rollout=text, attempt=text, secret=st.text("0123456789abcdef", min_size=32, max_size=64))
def test_a_minted_token_opens_exactly_its_attempt(rollout: str, attempt: str, secret: str) -> None:
    token = mint(secret, rollout, attempt, "train")
    assert verify(secret, token) == AttemptScope(rollout, attempt, "train")
    assert token.isascii() and verify(secret + "0", token) is None
    assert encode_request({"token": token}, [])


attribute_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=200)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(
    resource=st.dictionaries(text, attribute_values, max_size=3),
    attributes=st.dictionaries(text, attribute_values, max_size=6),
    kind=st.integers(0, 5),
    times=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    parent=st.just(b"") | st.binary(min_size=8, max_size=8),
    status=st.sampled_from(["unset", "ok", "error"]),
    message=st.text(max_size=200),
)
def test_a_span_written_by_hand_is_the_one_protobuf_writes(
    resource: Any, attributes: Any, kind: int, times: tuple[int, int], parent: bytes, status: Any, message: str
) -> None:
    sent = SpanData(message, *times, "74" * 16, "73" * 8, parent.hex(), attributes, status, message, kind=kind)
    expected = ExportTraceServiceRequest()
    resource_spans = expected.resource_spans.add()
    resource_spans.resource.attributes.extend(pair(key, value) for key, value in resource.items())
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "here"
    span = scope_spans.spans.add(name=message, kind=kind, trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=parent)
    span.start_time_unix_nano, span.end_time_unix_nano = times
    span.attributes.extend(pair(key, value) for key, value in attributes.items())
    span.status.code, span.status.message = ["unset", "ok", "error"].index(status), message
    assert ExportTraceServiceRequest.FromString(encode_request(resource, [sent], "here")) == expected


@given(st.text())
def test_no_text_that_was_not_minted_opens_anything(token: str) -> None:
    assert verify("0" * 64, "lf-" + token) is None
