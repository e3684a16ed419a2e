"""What the decoder makes of requests that are odd, broken or hostile: the table in docs/ingest.md, row by row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from lightning_core.lake import decode
from lightning_core.lake.decode import write_rejected
from lightning_core.otlp.messages import unconverted
from lightning_core.otlp.values import numbers
from tests import decoding as d
from tests.property.test_decode_fuzz import length, with_span


def rejection(raw: bytes) -> dict[str, Any]:
    """The rejection of a span that has good ones on both sides."""
    side = [d.good(1).SerializeToString()]
    rows, (entry,) = d.read(with_span(side, raw, side))
    assert [row["record_index"] for row in rows] == [0, 2]
    assert (entry["offset"], entry["index"], entry["count"], entry["span"]) == (0, 1, 1, raw.hex())
    assert (entry["received_ns"], entry["rollout_id"], entry["attempt_id"]) == (5, "r.1", "a1")
    return entry


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trace_id": b""}, "the span is without trace id"),
        ({"span_id": b""}, "the span is without span id"),
        ({"trace_id": bytes(16)}, "trace id of zeros"),
        ({"span_id": bytes(8)}, "span id of zeros"),
        ({"trace_id": b"\x01" * 20}, "trace id of 20 bytes; OTLP wants 16"),
        ({"span_id": b"\x01" * 20}, "span id of 20 bytes; OTLP wants 8"),
    ],
)
def test_a_span_without_a_valid_id_is_rejected_alone(fields: dict[str, bytes], reason: str) -> None:
    assert reason in rejection(d.good(2, **fields).SerializeToString())["reason"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff\xff\xff", "a number does not end"),
        (b"\x0a\x7f\x01", "longer than the message"),
        (b"\x07", "no field can have number 0"),
        (b"\x0b\x0c", "wire type 3"),
        (d.good(2).SerializeToString() + b"\x4a\x03\x0a\x7fx", "an attribute is broken"),
        (d.good(2).SerializeToString() + b"\x4a\x05\x0a\x00\x12\x01\x0a", "a value is broken"),
        (d.good(2).SerializeToString() + b"\x4a\x0a\x0a\x01k\x12\x05\x2a\x03\x0a\x7fx", "longer than the message"),
        (d.good(2).SerializeToString() + b"\x5a\x01\x0a", "an event or a link is broken"),
        (d.good(2).SerializeToString() + b"\x7a\x01\x0a", "the status is broken"),
        (unconverted({"traceId": "x"}, "traceId 'x' is no hex"), "traceId 'x' is no hex"),
    ],
)
def test_a_span_that_is_no_protobuf_is_rejected_alone(raw: bytes, reason: str) -> None:
    assert reason in rejection(raw)["reason"]


def test_a_broken_token_array_is_rejected_not_read_as_far_as_it_goes() -> None:
    good = ArrayValue(values=[AnyValue(int_value=n) for n in range(20)]).SerializeToString()
    for broken in (good[:-1], good + b"\x0a", good.replace(b"\x18\x07", b"\x1f\x07")):
        inner = b"\x2a" + length(broken) + broken
        pair = b"\x0a\x10prompt_token_ids\x12" + length(inner) + inner
        assert rejection(d.good(2).SerializeToString() + b"\x4a" + length(pair) + pair)["reason"]


def test_a_request_that_is_no_otlp_is_rejected_whole_and_the_next_is_read() -> None:
    body = d.request(d.good())
    for wrong in (b"\x12\x03abc", b"\x08\x01"):
        rows, (entry,) = d.read(wrong, body)
        assert [row["record_offset"] for row in rows] == [100]
        assert (
            entry["index"] is None
            and entry["span"] == wrong.hex()
            and "no ExportTraceServiceRequest" in entry["reason"]
        )


def test_requests_without_spans_are_no_fault() -> None:
    assert d.read(b"", d.request()) == ([], [])


def test_thousands_of_bad_spans_in_one_request_are_listed_up_to_a_limit() -> None:
    raw = with_span([b"\xff"] * 5000, d.good().SerializeToString(), [])
    rows, rejected = d.read(raw)
    assert len(rows) == 1 and len(rejected) == 1001
    assert sum(entry["count"] for entry in rejected) == 5000 and rejected[-1]["index"] == 1000


def test_more_spans_than_are_read_at_once_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    body = d.request(*(d.good(n) for n in range(1, 90)))
    expected = d.decode(body)
    monkeypatch.setattr(decode, "_SPANS_AT_ONCE", 20)
    assert d.decode(body) == expected


def test_end_before_start_missing_ends_1970_and_2100_are_kept_as_sent() -> None:
    assert [d.one(start_time_unix_nano=9, end_time_unix_nano=3)[f"{x}_ns"] for x in ("start", "end")] == [9, 3]
    assert d.one(end_time_unix_nano=0)["end_ns"] is None
    assert d.one(start_time_unix_nano=1)["start_ns"] == 1
    assert d.one(end_time_unix_nano=4_102_444_800_000_000_000)["end_ns"] == 4_102_444_800_000_000_000


def test_times_beyond_the_column_stay_as_text() -> None:
    row = d.one(start_time_unix_nano=2**63)
    assert row["start_ns"] is None and row["attributes"] == {"otlp.start_time_unix_nano": str(2**63)}


def test_ten_thousand_attributes_are_kept() -> None:
    row = d.one(*(d.pair(f"k{n}", n) for n in range(10_000)))
    assert len(row["attributes"]) == 10_000 and row["attributes"]["k9999"] == "9999"


def deep(levels: int) -> bytes:
    """A span with an attribute of so many arrays in one another; protobuf's own parser stops at 100."""
    raw = AnyValue(string_value="inside").SerializeToString()
    for _ in range(levels):
        raw = b"\x0a" + length(raw) + raw
        raw = b"\x2a" + length(raw) + raw
    pair = b"\x0a\x01k\x12" + length(raw) + raw
    return d.good(2).SerializeToString() + b"\x4a" + length(pair) + pair


def test_values_nested_100_deep_are_json_and_deeper_ones_keep_their_bytes() -> None:
    (row,), _ = d.read(with_span([], deep(100), []))
    value = row["attributes"]["k"]
    assert value == "[" * 100 + '"inside"' + "]" * 100
    for levels in (129, 3000):
        (row,), rejected = d.read(with_span([], deep(levels), []))
        assert rejected == []
        value = orjson.loads(row["attributes"]["k"])
        while isinstance(value, list):
            (value,) = value
        assert b"inside" in bytes.fromhex(value["otlp.too_deep"])


def test_nul_and_keys_with_quotes_and_sql_are_kept() -> None:
    key = "a'; DROP TABLE spans; -- \"\x00"
    assert d.one(d.pair(key, "x\x00y"))["attributes"] == {key: "x\x00y"}
    row, *_ = d.decode(
        d.request(d.good(name="\x00", attributes=[d.pair("metadata", "\x00"), d.pair("gen_ai.agent.name", "\x00")]))
    )[0]
    assert row["name"] == "\x00" and row["agent_name"] == "\x00"


def test_text_that_is_no_utf8_is_kept_with_replacement_characters_and_its_bytes() -> None:
    raw = d.good(2, name="nXme", attributes=[d.pair("kXy", "vXlue"), d.pair("list", ["iXem"])]).SerializeToString()
    rows, rejected = d.read(with_span([], raw.replace(b"X", b"\xff"), [d.good(3).SerializeToString()]))
    assert rejected == [] and rows[0]["name"] == "n�me" and rows[1]["attributes"] == {}
    attributes = dict(rows[0]["attributes"])
    lost = [bytes.fromhex(text) for text in json.loads(attributes.pop("otlp.invalid_utf8"))]
    assert attributes == {"k�y": "v�lue", "list": '["i�em"]'}
    assert sorted(lost) == [b"i\xffem", b"k\xffy", b"n\xffme", b"v\xfflue"]


def test_of_a_key_sent_twice_the_last_counts_and_the_others_are_listed() -> None:
    row = d.one(
        d.pair("k", 1), d.pair("gen_ai.request.model", "a"), d.pair("k", [2]), d.pair("gen_ai.request.model", "b")
    )
    assert row["model"] == "b" and row["attributes"]["k"] == "[2]"
    assert json.loads(row["attributes"]["otlp.duplicate_attributes"]) == [
        {"key": "k", "value": "1"},
        {"key": "gen_ai.request.model", "value": "a"},
    ]


def test_keys_that_are_no_utf8_and_become_the_same_are_the_same_key() -> None:
    raw = d.good(2, attributes=[d.pair("kX", "a"), d.pair("kY", "b")]).SerializeToString()
    (row,), rejected = d.read(with_span([], raw.replace(b"X", b"\xff").replace(b"Y", b"\xfe"), []))
    assert rejected == [] and row["attributes"]["k\ufffd"] == "b"
    assert json.loads(row["attributes"]["otlp.duplicate_attributes"]) == [{"key": "k\ufffd", "value": "a"}]


def test_a_long_list_of_integers_that_is_no_column_is_kept() -> None:
    many = list(range(200_000))
    assert json.loads(d.one(d.pair("ids", many))["attributes"]["ids"]) == many


def test_a_span_of_nothing_but_the_same_key_is_rejected_alone() -> None:
    raw = d.good(2).SerializeToString() + b"\x4a\x00" * 20_000
    assert "come twice" in rejection(raw)["reason"]


def test_a_name_of_ours_that_was_sent_stays_what_it_was() -> None:
    row = d.one(d.pair("otlp.duplicate_attributes", "mine"), d.pair("k", 1), d.pair("k", 2))
    assert row["attributes"]["otlp.duplicate_attributes"] == "mine"
    assert row["attributes"]["otlp.duplicate_attributes_"] == '[{"key":"k","value":"1"}]'


def test_fields_that_otlp_does_not_have_are_kept_as_bytes() -> None:
    raw = d.good(2).SerializeToString() + b"\xaa\x06\x02hi"
    (row,), _ = d.read(with_span([], raw, []))
    assert json.loads(row["attributes"]["otlp.unknown_fields"]) == [
        {"field": 101, "wire_type": 2, "bytes": b"hi".hex()}
    ]


def test_keys_and_texts_by_index_have_no_table_in_traces_and_are_kept_by_number() -> None:
    row = d.one(KeyValue(key_strindex=7, value=AnyValue(string_value_strindex=8)))
    assert row["attributes"] == {"otlp.key_strindex.7": '{"otlp.string_value_strindex":8}'}


def test_a_broken_resource_costs_its_attributes_alone() -> None:
    span = d.good().SerializeToString()
    scope = b"\x12" + length(span) + span
    resource_spans = b"\x0a\x02\x0a\x7f" + b"\x12" + length(scope) + scope
    (row,), rejected = d.read(b"\x0a" + length(resource_spans) + resource_spans)
    assert rejected == [] and row["resource"] == {"otlp.resource.unreadable": "0a7f"}


def test_rollouts_nobody_knows_are_kept() -> None:
    body = d.request(d.good(), resource={"lightning.rollout_id": "never heard of"})
    table, rejected = d.DECODER.decode([(0, 1, d.record(body, None, None))])
    assert (table["rollout_id"].to_pylist(), table["scope"].to_pylist(), rejected) == (
        ["never heard of"],
        ["resource"],
        [],
    )


def test_the_content_hash_is_of_the_span_and_its_resource() -> None:
    def content_hash(body: bytes) -> int:
        return d.read(body)[0][-1]["content_hash"]

    sent = content_hash(d.request(d.good(1)))
    assert sent == content_hash(d.request(d.good(2), d.good(1)))
    assert (
        len(
            {
                sent,
                content_hash(d.request(d.good(1, name="x"))),
                content_hash(d.request(d.good(1), resource={"a": "b"})),
            }
        )
        == 3
    )


NUMBERS = [0, 1, 127, 128, 16_384, 151_935, 2**21, 2**31 - 1]


@pytest.mark.parametrize("sent", [np.array(NUMBERS, "<i4").tobytes(), NUMBERS, json.dumps(NUMBERS)])
def test_token_ids_come_as_bytes_arrays_or_json(sent: Any) -> None:
    assert d.one(d.pair("prompt_token_ids", sent))["prompt_ids"] == NUMBERS


@pytest.mark.parametrize("sent", [np.array([0, -1.5], "<f4").tobytes(), [0, -1.5], [0.0, -1.5], "[0, -1.5]"])
def test_logprobs_come_as_bytes_arrays_or_json_and_may_hold_integers(sent: Any) -> None:
    assert d.one(d.pair("lightning.response_logprobs", sent))["response_logprobs"] == [0.0, -1.5]


@pytest.mark.parametrize("sent", [b"\x01\x02\x03", [1, 2**31], [1, "2"], [1.0], "[1, null]", "{}", "[1", [2**40] * 30])
def test_token_ids_that_cannot_be_read_stay_attributes(sent: Any) -> None:
    row = d.one(d.pair("prompt_token_ids", sent), d.pair("lightning.prompt_token_ids", [5]))
    assert row["prompt_ids"] == [5] and "prompt_token_ids" in row["attributes"]
    assert d.one(d.pair("prompt_token_ids", sent))["prompt_ids"] is None


def test_arrays_of_many_spans_are_read_together_whatever_stands_between_them() -> None:
    arrays = [list(range(n)) for n in (0, 3, 500)] + [[-1, 5], [2**40], [300] * 70]
    raw = [ArrayValue(values=[AnyValue(int_value=n) for n in array]).SerializeToString() for array in arrays]
    raw += [b"\x0a\x02\x18", raw[1] + b"\x80", ArrayValue(values=[AnyValue(double_value=1.0)]).SerializeToString()]
    assert [None if (f := numbers(one)) is None else f.tolist() for one in raw] == [*arrays, None, None, [1.0]]


def test_an_array_of_doubles_that_are_not_finite_is_read_and_shown() -> None:
    row = d.one(d.pair("lightning.response_logprobs", [float("-inf"), 0.0]), d.pair("other", [float("nan"), 1.5]))
    assert row["response_logprobs"] == [float("-inf"), 0.0] and row["attributes"] == {"other": '["nan",1.5]'}


def test_scopes_and_resources_of_many_requests_stay_apart() -> None:
    bodies = [d.request(d.good(n), resource={"n": str(n)}) for n in (1, 2, 1)]
    assert [row["resource"] for row in d.read(*bodies)[0]] == [{"n": "1"}, {"n": "2"}, {"n": "1"}]


def test_a_request_merged_of_several_resources_keeps_its_order() -> None:
    merged = ExportTraceServiceRequest()
    for n in (1, 2, 3):
        merged.MergeFromString(d.request(d.good(n), resource={"n": str(n)}))
    rows, _ = d.read(merged.SerializeToString())
    assert [(row["record_index"], row["resource"]["n"]) for row in rows] == [(0, "1"), (1, "2"), (2, "3")]


def test_rejected_spans_are_lines_of_json_in_a_file_named_after_their_range(tmp_path: Any) -> None:
    _, rejected = d.read(with_span([], b"\xff", []))
    write_rejected(tmp_path / "rejected", "0-9", rejected)
    (line,) = (tmp_path / "rejected/0-9.jsonl").read_text().splitlines()
    assert json.loads(line) == rejected[0]
    write_rejected(tmp_path / "rejected", "9-9", [])
    assert len(list((tmp_path / "rejected").iterdir())) == 1


def hollow(field: int, count: int, number: int) -> bytes:
    """A span with so many fields that hold nothing."""
    return d.good(number).SerializeToString() + bytes([field << 3 | 2, 0]) * count


@pytest.mark.parametrize(("field", "label"), [(11, "events"), (13, "links")])
def test_events_and_links_without_a_byte_are_counted_and_the_others_kept(field: int, label: str) -> None:
    said = d.good(3)
    (said.events if label == "events" else said.links).add(dropped_attributes_count=7)
    spans = [hollow(field, 9_999, 1), hollow(field, 1, 2), said.SerializeToString() + bytes([field << 3 | 2, 0]) * 2]
    group = b"".join(b"\x12" + length(span) + span for span in spans)
    scopes = b"\x12" + length(group) + group
    rows, rejected = d.decode(b"\x0a" + length(scopes) + scopes)
    assert not rejected
    assert [row["attributes"][f"otlp.empty_{label}"] for row in rows] == ["9999", "1", "2"]
    assert [row[label] for row in rows[:2]] == [None, None]
    assert [one["dropped_attributes_count"] for one in json.loads(rows[2][label])] == [7]


def test_the_same_short_event_is_read_alike_wherever_it_is() -> None:
    spans = [d.good(n) for n in range(1, 6)]
    for span in spans:
        for time in (1, 2, 1):
            span.events.add(time_unix_nano=time, name="e")
    rows, rejected = d.decode(d.request(*spans))
    assert not rejected
    assert [[e["time_ns"] for e in json.loads(row["events"])] for row in rows] == [[1, 2, 1]] * 5


def test_a_request_of_more_spans_than_are_concluded_at_once_is_decoded_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans = [d.good(n, name=f"n{n % 7}") for n in range(1, 40)]
    whole, _ = d.decode(d.request(*spans))
    monkeypatch.setattr(decode, "_CONCLUDED_AT_ONCE", 8)
    parts, rejected = d.decode(d.request(*spans))
    assert parts == whole and not rejected
