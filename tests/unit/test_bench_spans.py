"""What the benches send is what they say."""

from __future__ import annotations

import struct
from typing import Any, get_args

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.spans import IdEncoding, Template, request, request_spans


def spans(body: bytes) -> list[Any]:
    (resource_spans,) = ExportTraceServiceRequest.FromString(body).resource_spans
    return list(resource_spans.scope_spans[0].spans)


def ids(span: Any, encoding: IdEncoding) -> list[int]:
    values = {a.key: a.value for a in span.attributes}
    both = [values["lightning.prompt_token_ids"], values["lightning.response_token_ids"]]
    if encoding == "bytes":
        return [i for v in both for (i,) in struct.iter_unpack("<i", v.bytes_value)]
    if encoding == "array":
        return [i.int_value for v in both for i in v.array_value.values]
    return [int(i) for v in both for i in v.string_value.strip("[]").split(",")]


@pytest.mark.parametrize("encoding", get_args(IdEncoding))
def test_a_large_span_is_a_call_of_620_tokens_whatever_writes_them(encoding: IdEncoding) -> None:
    made = spans(request(request_spans("large", 3, 8, encoding), {"rollout": "r"}))
    assert [len(s.attributes) for s in made] == [22] * 8
    assert [len(ids(s, encoding)) for s in made] == [620] * 8
    assert [ids(s, encoding) for s in made] == [
        ids(s, "bytes") for s in spans(request(request_spans("large", 3, 8), {}))
    ]


def test_sizes_are_the_ones_that_figures_are_quoted_for() -> None:
    assert 8_500 < len(request_spans("large", 1, 16)) / 16 < 9_500
    assert 500 < len(request_spans("small", 1, 16)) / 16 < 700


def test_a_template_gives_the_same_tree_under_other_ids_and_times() -> None:
    body = request_spans("small", 1, 32)
    before, after = spans(request(body, {})), spans(Template(body).shifted(77))
    assert {s.span_id for s in before}.isdisjoint(s.span_id for s in after)
    place = {s.span_id: i for i, s in enumerate(before)} | {s.span_id: i for i, s in enumerate(after)}
    assert len(place) == 64
    for old, new in zip(before, after, strict=True):
        assert place.get(old.parent_span_id) == place.get(new.parent_span_id)
        assert new.start_time_unix_nano - old.start_time_unix_nano == 7_700_000_000
        assert new.end_time_unix_nano - old.end_time_unix_nano == 7_700_000_000
        assert old.attributes == new.attributes and old.trace_id != new.trace_id
