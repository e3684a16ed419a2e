"""Whatever the bytes, the decoder answers: no exception, and no good span lost for a bad one beside it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import ArrayValue

from lightning_core.otlp.messages import OtlpError
from lightning_core.otlp.receive import parse_request
from lightning_core.otlp.spans import PROTOBUF
from lightning_core.otlp.values import numbers
from tests import decoding as d
from tests.examples import of_many

QUICK = of_many(examples=10)
REASONS = {"offset", "index", "count", "reason", "received_ns", "rollout_id", "attempt_id", "scope", "source", "span"}


def seen(rows: list[dict[str, Any]]) -> list[str]:
    return [repr({k: v for k, v in row.items() if k not in ("record_offset", "record_index")}) for row in rows]


def check_rejected(rejected: list[dict[str, Any]]) -> None:
    for entry in rejected:
        assert set(entry) - {"request"} == REASONS and entry["reason"] and entry["received_ns"] == 5
        bytes.fromhex(entry["span"])


def mutated(draw: Any, raw: bytes) -> bytes:
    """The bytes, as many, with some of them changed."""
    changed = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


def with_span(before: list[bytes], raw: bytes, after: list[bytes]) -> bytes:
    """A request of encoded spans."""
    scope = b"".join(b"\x12" + length(span) + span for span in (*before, raw, *after))
    resource = b"\x12" + length(scope) + scope
    return b"\x0a" + length(resource) + resource


def length(raw: bytes) -> bytes:
    n, out = len(raw), bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


@QUICK
@given(data=st.data(), sent=st.lists(d.spans(), min_size=1, max_size=2), copies=st.sampled_from([1, 30]))
def test_a_span_whose_bytes_are_broken_loses_no_other(data: Any, sent: list[Any], copies: int) -> None:
    others = [span.SerializeToString() for span in sent] * copies
    victim = mutated(data.draw, data.draw(d.spans()).SerializeToString())
    expected = seen(d.read(with_span(others[:-1], others[-1], []))[0])
    rows, rejected = d.read(with_span(others, victim, others))
    check_rejected(rejected)
    around = [row for row in rows if row["record_index"] != len(others)]
    assert seen(around) == expected + expected
    assert len(rows) + len(rejected) == 2 * len(others) + 1
    assert all(entry["index"] == len(others) and entry["span"] == victim.hex() for entry in rejected)


@QUICK
@given(data=st.data(), sent=st.lists(d.spans(), min_size=1, max_size=4))
def test_a_request_that_is_cut_off_is_refused_and_in_the_spool_rejected_as_one(data: Any, sent: list[Any]) -> None:
    encoded = [span.SerializeToString() for span in sent]
    body = with_span(encoded[:-1], encoded[-1], [])
    cut = body[: data.draw(st.integers(1, len(body) - 1))]
    with pytest.raises(OtlpError) as caught:
        parse_request(cut, PROTOBUF, None, len(body))
    assert caught.value.status == 400
    rows, rejected = d.read(cut)
    check_rejected(rejected)
    assert (rows, len(rejected)) == ([], 1) and rejected[0]["span"] == cut.hex()


@QUICK
@given(data=st.data(), sent=st.lists(d.spans(), min_size=1, max_size=3), noise=st.binary(max_size=40))
def test_no_bytes_raise(data: Any, sent: list[Any], noise: bytes) -> None:
    body = d.request(*sent, resource={"service.name": "x"})
    at = data.draw(st.integers(0, len(body)))
    changed = data.draw(st.sampled_from([mutated(data.draw, body), body[:at] + noise + body[at:], noise, body[at:]]))
    rows, rejected = d.read(changed, body)
    check_rejected(rejected)
    assert seen([row for row in rows if row["record_offset"] == 100]) == seen(d.read(body)[0]), (
        "the next request is whole"
    )
    try:
        found = ExportTraceServiceRequest.FromString(changed)
    except DecodeError:
        return
    if not rejected:
        spans = [s for resource in found.resource_spans for scope in resource.scope_spans for s in scope.spans]
        mine = [row for row in rows if row["record_offset"] == 0]
        assert [(row["name"], row["span_id"]) for row in mine] == [(s.name, s.span_id.hex()) for s in spans]


array_bytes = st.one_of(
    st.lists(st.one_of(st.sampled_from([0, 10, 24, 127, 128, 2**31, -1]), st.integers(0, 2**34)), max_size=5).map(
        lambda numbers: d.value(numbers).array_value.SerializeToString()
    ),
    st.lists(st.floats(), max_size=3).map(lambda numbers: d.value(numbers).array_value.SerializeToString()),
    st.lists(st.sampled_from([0x0A, 0x02, 0x18, 0x05, 0x80, 0x21, 0x09]), max_size=12).map(bytes),
)


@of_many(examples=60)
@given(st.lists(array_bytes, max_size=6))
def test_arrays_read_together_are_those_read_one_by_one(made: list[bytes]) -> None:
    for raw in made:
        if (found := numbers(raw)) is not None:
            assert repr(found.tolist()) == repr(
                [getattr(item, item.WhichOneof("value")) for item in ArrayValue.FromString(raw).values]
            )
