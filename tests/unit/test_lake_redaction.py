"""What the rules take out of spans reaches no file of the lake, in whatever column or encoding it came."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lightning_core import names
from lightning_core.config import LakeSettings, RedactionPattern, SettingsError
from lightning_core.lake import schema
from lightning_core.lake.decode import Decoder
from lightning_core.lake.lake import Lake
from lightning_core.lake.redact import Redaction
from lightning_core.otlp.spans import SpanData, encode_request, int32_bytes
from lightning_flows.flows.cli import main
from tests.examples import of_many
from tests.lake_maker import Attempt, derived, table
from tests.spool_maker import record, rollout_spans, span, store

SECRET = "4111 1111"
RULES = LakeSettings(redact=[RedactionPattern(pattern=r"4111[ -]?1111")])


def redacted(spans: list[SpanData], rules: LakeSettings = RULES) -> list[dict[str, Any]]:
    """Decode and redact spans; the row of each."""
    decoded, _ = Decoder().decode([(0, 1, record(encode_request({"host.name": SECRET}, spans)))])
    found = Redaction(rules).spans(decoded)
    assert found.schema.equals(schema.arrow_schema(schema.SPANS))
    rows: list[dict[str, Any]] = found.to_pylist(maps_as_pydicts="strict")
    return rows


@cache
def one_row() -> pa.Table:
    return Decoder().decode([(0, 1, record(encode_request({"host.name": "a"}, [span("a", 1, key="b")])))])[0]


def call(messages: Any, **more: Any) -> SpanData:
    one = rollout_spans("r.1")[1]
    changed = {**one.attributes, names.GEN_AI_INPUT_MESSAGES: json.dumps(messages), **more}
    return replace(one, attributes=changed)


def test_a_call_whose_text_changed_loses_its_tokens_and_is_not_trained_on() -> None:
    changed, kept = redacted(
        [call([{"role": "user", "content": f"card {SECRET}"}]), span("other", 9), call([{"content": "hello"}])][::2]
    )
    assert json.loads(changed["input_messages"]) == [{"role": "user", "content": "card [redacted]"}]
    assert [changed[c] for c in ("prompt_ids", "response_ids", "response_logprobs")] == [None] * 3
    assert (changed["untrainable"], changed["input_tokens"]) == ("redacted", kept["input_tokens"])
    assert (kept["untrainable"], kept["prompt_ids"]) == (None, [1, 2, 3])
    assert changed["resource"]["host.name"] == "[redacted]" == kept["resource"]["host.name"]


def test_token_ids_under_another_name_go_too() -> None:
    both = {names.PROMPT_TOKEN_IDS: int32_bytes([1, 2]), "prompt_token_ids": "[1, 2, 3]"}
    (row,) = redacted([call([{"content": SECRET}], **both)])
    assert not any("token_ids" in key for key in row["attributes"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (
            "output.value",
            {
                "id": 1,
                "prompt_token_ids": [5],
                "choices": [{"token_ids": [1], "logprobs": {"content": [{"token": "4"}]}}],
            },
        ),
        ("output.value", {"choices": [{"logprobs": {"content": [{"token": "4"}]}}]}),
        ("nested", {"answer": json.dumps({"response_token_ids": [1], "b": 2})}),
        ("repeated", [{"logprobs": [1.5]}, {"logprobs": True}]),
        (
            "otlp.duplicate_attributes",
            [{"key": names.PROMPT_TOKEN_IDS, "value": "0700"}, {"key": "other", "value": "x"}],
        ),
    ],
)
def test_token_ids_in_the_texts_of_a_redacted_call_go_too(key: str, value: Any) -> None:
    sent = json.dumps(value)
    (row,) = redacted([call([{"content": SECRET}], **{key: sent, "llm.choices.0.token_ids": "[1]"})])
    assert row["attributes"][key] == "[redacted]"
    assert "llm.choices.0.token_ids" not in row["attributes"]
    (row,) = redacted([call([{"content": "hello"}], **{key: sent})])
    assert row["attributes"][key] == sent, "a call that is not redacted keeps its own"


def test_that_logprobs_were_asked_for_stays() -> None:
    asked = json.dumps({"logprobs": True, "prompt_logprobs": 5})
    (row,) = redacted([call([{"content": SECRET}], asked=asked)])
    assert (row["attributes"]["asked"], row["prompt_ids"]) == (asked, None)


def test_token_ids_without_a_text_to_look_at_are_not_kept() -> None:
    (row,) = redacted([span("call", 1, **{names.POLICY: "p", names.PROMPT_TOKEN_IDS: int32_bytes([1])})])
    assert (row["prompt_ids"], row["untrainable"]) == (None, "redacted")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("my.attribute", SECRET),
        ("my.list", ["a", f"b {SECRET}"]),
        ("gen_ai.tool.call.arguments", json.dumps({"number": f"x{SECRET}", "deep": [{"a": [SECRET]}]})),
        ("gen_ai.tool.call.result", SECRET),
        (names.TASK, json.dumps({"question": SECRET})),
        (names.OUTPUT, json.dumps(SECRET)),
        (names.ERROR, f"no such card: {SECRET}"),
        ("gen_ai.agent.name", f"agent of {SECRET}"),
        ("gen_ai.tool.name", SECRET),
        (names.REQUESTED_SAMPLING, json.dumps({"stop": [SECRET]})),
        ("key.in.json", json.dumps({SECRET: 1})),
        ("number.in.json", json.dumps({"card": 41111111})),
        ("nested.json", json.dumps([{"arguments": json.dumps({"card": SECRET})}])),
    ],
)
def test_no_column_keeps_what_a_pattern_matches(key: str, value: Any) -> None:
    one = SpanData(
        f"pay {SECRET}", 1, 2, "01" * 16, "02" * 8, attributes={key: value}, status="error", status_message=SECRET
    )
    (row,) = redacted([one])
    text = json.dumps(row, default=str)
    assert SECRET not in text and "41111111" not in text
    assert text.count("[redacted]") >= 3


def test_escapes_of_json_hide_nothing_and_json_stays_json() -> None:
    rules = LakeSettings(redact=[RedactionPattern(pattern="Zoë", replacement="someone")])
    (row,) = redacted([call([{"content": 'I am Zoë, "the one"\n'}])], rules)
    assert json.loads(row["input_messages"]) == [{"content": 'I am someone, "the one"\n'}]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (r'"I am Jos\u00e9"', '"I am [name]"'),
        (r'"{\"a\": \"Jos\\u00e9\"}"', r'"{\"a\": \"[name]\"}"'),
        (r'"\u004aos\u00e9\ud83d\ude00\u0022\n"', '"[name]😀\\"\\n"'),
        ('{"a":"Jos\\u00e9"}\n\n["Jos\\u00e9"]\r\nnull\n', '{"a":"[name]"}\n\n["[name]"]\r\nnull\n'),
        (r'{"a": "José", "a": "x"}', '{"a": "[name]", "a": "x"}'),
        (r'[{"a" : {"b": "Jos\u00e9"}, "\u0061": 1}]', '[{"a" : {"b": "[name]"}, "a": 1}]'),
        (r'{"t": NaN, "a": "Jos\u00e9"}', '{"t": NaN, "a": "[name]"}'),
        (r'{"half": "\ud83d", "a": "Jos\u00e9"}', '{"half": "?", "a": "[name]"}'),
        ('{"a": "Jos\\u00e9\n"}', '{"a": "[name]\\n"}'),
        (r'{"n": %s, "a": "Jos\u00e9"}' % ("9" * 5000), '{"n": %s, "a": "[name]"}' % ("9" * 5000)),
        ('{"José": "x"}', '{"[name]": "x"}'),
    ],
)
def test_no_form_of_json_hides_a_text(sent: str, kept: str) -> None:
    rules = LakeSettings(redact=[RedactionPattern(pattern="José", replacement="[name]")])
    (row,) = redacted([call(None, **{names.GEN_AI_INPUT_MESSAGES: sent})], rules)
    assert (row["input_messages"], row["prompt_ids"], row["untrainable"]) == (kept, None, "redacted")


def test_an_escaped_slash_hides_nothing() -> None:
    rules = LakeSettings(redact=[RedactionPattern(pattern=r"https://\S+?/key")])
    (row,) = redacted([span("a", 1, key=r'{"url": "https:\/\/host\/key"}')], rules)
    assert row["attributes"]["key"] == '{"url": "[redacted]"}'


def test_members_whose_keys_become_one_are_all_kept() -> None:
    rules = LakeSettings(redact=[RedactionPattern(pattern="alice|bob", replacement="-")])
    (row,) = redacted([span("a", 1, key='{"alice":1,"bob":2}')], rules)
    assert row["attributes"]["key"] == '{"-":1,"-":2}'


def test_the_line_before_a_text_in_json_hides_nothing() -> None:
    rules = LakeSettings(redact=[RedactionPattern(pattern=r"\b4111\b"), RedactionPattern(pattern="^Zoë$")])
    (row,) = redacted([call([{"content": "card:\n4111\t4111"}, {"content": "Zoë"}])], rules)
    assert [m["content"] for m in json.loads(row["input_messages"])] == ["card:\n[redacted]\t[redacted]", "[redacted]"]


def test_json_in_part_is_matched_as_it_is_written() -> None:
    rules = LakeSettings(redact=[RedactionPattern(pattern="secret", replacement="-")])
    (row,) = redacted([span("a", 1, key='so:\n{"a": "secret"}', other='"secret" it said')], rules)
    assert (row["attributes"]["key"], row["attributes"]["other"]) == ('so:\n{"a": "-"}', '"-" it said')


def test_a_pattern_may_speak_of_the_json_around_a_text() -> None:
    rules = LakeSettings(redact=[RedactionPattern(pattern=r'"ssn": ?"[^"]*"', replacement='"ssn":"-"')])
    (row,) = redacted([span("t", 1, **{"gen_ai.tool.call.arguments": '{"ssn": "1", "b": 2}'})], rules)
    assert json.loads(row["tool_arguments"]) == {"ssn": "-", "b": 2}
    everything = LakeSettings(redact=[RedactionPattern(pattern=r"(?s)^\{.*\}$", replacement="{gone}")])
    (row,) = redacted([span("t", 1, **{"gen_ai.tool.call.arguments": '{"a": 1}'})], everything)
    assert json.loads(row["tool_arguments"]) == "{gone}"


def test_groups_of_a_pattern_can_be_kept_and_rules_follow_one_another() -> None:
    rules = LakeSettings(
        redact=[
            RedactionPattern(pattern=r"(\w+)@(\w+)\.com", replacement=r"\1@x"),
            RedactionPattern(pattern="@x", replacement="!"),
        ]
    )
    (row,) = redacted([span("mail bob@y.com", 1)], rules)
    assert row["name"] == "mail bob!"


def test_times_and_ids_of_events_and_links_stay() -> None:
    table = Decoder().decode([(0, 1, record(encode_request({}, [span("a", 1)])))])[0]
    events = json.dumps([{"time_ns": 41111111, "name": "said", "attributes": {"text": SECRET}}])
    place = table.schema.get_field_index("events")
    table = table.set_column(place, table.schema.field(place), pa.array([events]))
    (row,) = Redaction(RULES).spans(table).to_pylist()
    assert json.loads(row["events"]) == [{"time_ns": 41111111, "name": "said", "attributes": {"text": "[redacted]"}}]


def test_of_events_and_links_every_text_is_rewritten() -> None:
    table = Decoder().decode([(0, 1, record(encode_request({}, [span("a", 1)])))])[0]
    ids = {
        "trace_id": "41111111" * 4,
        "span_id": "41111111" * 2,
        "flags": 41111111,
        "dropped_attributes_count": 41111111,
    }
    place = table.schema.get_field_index("links")
    links = json.dumps([ids | {"attributes": {}, "trace_state": f"k={SECRET}", "to_come": SECRET}])
    table = table.set_column(place, table.schema.field(place), pa.array([links]))
    (row,) = Redaction(RULES).spans(table).to_pylist()
    assert json.loads(row["links"]) == [
        ids | {"attributes": {}, "trace_state": "k=[redacted]", "to_come": "[redacted]"}
    ]


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("otlp.invalid_utf8", json.dumps([SECRET.encode().hex()]), "[redacted]"),
        ("otlp.unknown_fields_", json.dumps([{"field": 42, "bytes": "00" + SECRET.encode().hex()}]), "[redacted]"),
        ("deep", json.dumps([{"otlp.too_deep": "0a0b0c"}]), '[{"otlp.too_deep": "[redacted]"}]'),
        ("deep", json.dumps({"otlp.unknown": "0a0b0c"}), '{"otlp.unknown": "[redacted]"}'),
        ("otlp.scope.unreadable", "0a0b0c", "[redacted]"),
    ],
)
def test_bytes_that_no_pattern_can_read_are_not_kept(key: str, value: Any, kept: str) -> None:
    (row,) = redacted([span("a", 1, **{key: value})])
    assert row["attributes"][key] == kept


def test_bytes_that_could_not_be_read_are_gone_and_cost_no_call_its_tokens() -> None:
    (row,) = redacted([call([{"content": "hello"}], **{"otlp.invalid_utf8": '["ff"]', "otlp.unknown_fields": "[]"})])
    assert (row["attributes"]["otlp.invalid_utf8"], row["untrainable"], row["prompt_ids"]) == (
        "[redacted]",
        None,
        [1, 2, 3],
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"pattern": "(?=x)"}, r"lake\.redact\.0: '\(\?=x\)'"),
        ({"pattern": "a", "replacement": r"\1"}, r"lake\.redact\.0"),
    ],
)
def test_a_rule_that_cannot_work_is_an_error_before_anything_runs(rule: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Redaction.of(LakeSettings(redact=[RedactionPattern(**rule)]))


def test_a_redacted_lake_is_not_filled_without_its_rules(tmp_path: Path) -> None:
    store(tmp_path, [record(encode_request({}, [span(SECRET, 1)]))])
    Lake(tmp_path).ingest(redaction=Redaction(RULES))
    store(tmp_path, [record(encode_request({}, [span(SECRET, 2)]))])
    settings = tmp_path / "s.yaml"
    rule = "lake: {redact: [{pattern: '4111 1111'}]}"
    settings.write_text(f"home: {tmp_path}\nagent: {{command: x}}\ntasks: {{train: t.jsonl}}\n{rule}\n")
    refused = CliRunner().invoke(main, ["ingest", "--home", str(tmp_path)])
    assert refused.exit_code == 1 and "ingest --settings FILE" in refused.output
    done = CliRunner().invoke(main, ["ingest", "--settings", str(settings)])
    assert done.exit_code == 0, done.output
    with Lake(tmp_path).connect() as con:
        assert con.execute("SELECT DISTINCT name FROM spans").fetchall() == [("[redacted]",)]
    store(tmp_path, [record(encode_request({}, [span(SECRET, 3)]))])
    asked = CliRunner().invoke(main, ["ingest", "--home", str(tmp_path), "--unredacted"])
    assert "1 spans decoded" in asked.output


def test_of_rejected_spans_only_place_and_reason_are_kept(tmp_path: Path) -> None:
    broken = encode_request({}, [SpanData(SECRET, 1, 2, "01" * 16, ""), span("fine", 2)])
    store(tmp_path, [record(broken)])
    assert Lake(tmp_path).ingest(redaction=Redaction(RULES)).rejected == 1
    (file,) = (tmp_path / "spool" / "rejected").iterdir()
    kept = json.loads(file.read_text())
    assert "span" not in kept and kept["reason"] and kept["index"] == 0


def test_redacted_calls_are_excluded_with_that_reason(tmp_path: Path) -> None:
    one = Attempt("r.0")
    one.root()
    one.call([1], [2], prompt_ids=None, response_ids=None, response_logprobs=None, untrainable="redacted")
    one.reward(1.0)
    lake, epoch = derived(tmp_path, one.rows)
    assert [row["left_out"] for row in table(lake, epoch, "policy_calls")] == ["untrainable: redacted"]


@of_many(examples=20)
@given(
    value=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_no_rule_matches_is_not_touched(value: Any) -> None:
    text = json.dumps(value)
    sent = {"events": json.dumps([{"time_ns": 1, "attributes": {"a": value}}]), "input_messages": text, "name": text}
    rows = one_row()
    for column, cell in sent.items():
        place = rows.schema.get_field_index(column)
        rows = rows.set_column(place, rows.schema.field(place), pa.array([cell]))
    rules = LakeSettings(redact=[RedactionPattern(pattern="no such text anywhere")])
    assert Redaction(rules).spans(rows).equals(rows)
