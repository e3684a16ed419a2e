"""Texts of spans are rewritten before they reach Parquet, by patterns and by a function of the user's.

A JSON value is rewritten text by text (its keys too, numbers as text), however deep, then as it is written, so that a
pattern may also speak of the JSON around a text; what was JSON stays JSON. A text in hex is also read as the bytes it
may stand for, and bytes that the decoder could not read are not kept. Token ids say the same as the text: calls whose
text changed lose them, and so do calls that came without a text to look at.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from lightning_core import names
from lightning_core.config import LakeSettings, SettingsError
from lightning_core.lake import json_text, schema, sql
from lightning_core.lake.manifest import LakeError
from lightning_core.lake.number_facts import FACTS
from lightning_core.loading import grader_digest, load_callable

# What an LLM call's token ids can be read back into.
_CONTENT = (
    "task",
    "output",
    "input_messages",
    "output_messages",
    "tool_arguments",
    "tool_result",
    "attributes",
    "events",
)
# Names and ids that rows are found, joined and counted by; every other text is rewritten, also of columns to come.
_IDENTIFIERS = set(
    [
        "rollout_id",
        "attempt_id",
        "scope",
        "trace_id",
        "span_id",
        "parent_span_id",
        "kind",
        "op",
        "status",
        "agent_name_source",
        "run",
        "mode",
        "group_id",
        "task_id",
        "outcome",
        "policy",
        "policy_version",
        "model",
        "response_id",
        "finish_reasons",
        "untrainable",
        "tool_call_id",
        "reward_name",
        "reward_source",
        "declared_rollout_id",
        "declared_attempt_id",
        "operation",
        "span_role",
        "instrumentation",
    ]
)
_RECORDS = ("events", "links")  # JSON lists of records, of which these are no text:
_RECORD_NUMBERS = {"time_ns", "trace_id", "span_id", "flags", "dropped_attributes_count"}
_MAPS = ("attributes", "resource")
_TEXTS = [c.name for c in schema.SPANS if c.type == "VARCHAR" and c.name not in {*_IDENTIFIERS, *_RECORDS}]
_OURS = {names.REWARD_GRADER, names.ROLLOUT_ID, names.ATTEMPT_ID}  # attributes that other rows refer to
_IDS = ("prompt_ids", "response_ids", "response_logprobs")
# As servers call them in their answers, beside the attributes that ingest knows.
_SERVER_TOKENS = frozenset(
    [
        "token_ids",
        "completion_token_ids",
        "output_token_ids",
        "logprobs",
        "prompt_logprobs",
        "input_token_logprobs",
        "output_token_logprobs",
    ]
)
_ROWS = 2048  # rewritten at a time
# Under these the decoder keeps bytes that it could not read, which no rule can be trusted to read either.
_UNREAD = re.compile(r"otlp\.(invalid_utf8|unknown_fields|unknown|too_deep|(resource|scope)\.unreadable)_*")
_UNREAD_KEPT = "[redacted]"
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")  # bytes are kept so


class Redaction:
    """The rules of a lake. Without any it leaves everything as it is."""

    def __init__(self, settings: LakeSettings | None = None) -> None:
        """Raises SettingsError for a pattern that RE2 cannot take, and a function that cannot be found."""
        self._patterns = [(p.pattern, p.replacement) for p in settings.redact] if settings is not None else []
        self._reference = settings.redact_with if settings is not None else None
        for number, (pattern, replacement) in enumerate(self._patterns):
            try:
                pc.replace_substring_regex(pa.array([""]), pattern, replacement)
            except pa.ArrowInvalid as error:
                raise SettingsError(f"lake.redact.{number}: {pattern!r} → {replacement!r}: {error}") from None
        self._function: Callable[[str], str | None] | None = None
        if self._reference is not None:
            self._function = load_callable(self._reference, "lake.redact_with")

    @classmethod
    def of(cls, settings: LakeSettings) -> Redaction | None:
        """The rules that settings give; None where they give none."""
        return cls(settings) if settings.redact or settings.redact_with else None

    @property
    def digest(self) -> str | None:
        """Digest of the rules; None where there are none."""
        if not self._patterns and self._reference is None:
            return None
        rules = json.dumps([self._patterns, grader_digest(self._reference)])
        return hashlib.sha256(rules.encode()).hexdigest()[:16]

    def spans(self, table: pa.Table) -> pa.Table:
        """Rows of schema.SPANS, rewritten. Raises LakeError naming the function where it fails."""
        if self.digest is None or not table.num_rows:
            return table
        parts = [self._slice(table.slice(at, _ROWS)) for at in range(0, table.num_rows, _ROWS)]
        return pa.concat_tables(parts).cast(table.schema)

    def rejected(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Spans that could not be decoded: place and reason stay, their bytes go."""
        if self.digest is None:
            return found
        reasons = self._plain([r["reason"] for r in found])
        return [{k: v for k, v in r.items() if k != "span"} | {"reason": reasons[r["reason"]]} for r in found]

    def _slice(self, table: pa.Table) -> pa.Table:
        columns = {name: table[name].to_pylist() for name in (*_TEXTS, *_RECORDS, *_MAPS)}
        texts = {text for name in _TEXTS for text in columns[name] if text is not None}
        texts |= {v for name in _MAPS for items in columns[name] for k, v in items or () if v is not None}
        records = {text for name in _RECORDS for text in columns[name] if text is not None}
        new: dict[str, str | None] = self._rewritten(texts)
        new_records = self._rewritten(records, of_records=True)
        changed = [False] * table.num_rows  # of what token ids could say
        for name, values in columns.items():
            if name in _MAPS:
                rewritten: list[Any] = [
                    [(k, v if k in _OURS or v is None else new[v]) for k, v in items or ()] for items in values
                ]
                kept = [[(k, _UNREAD_KEPT if _UNREAD.fullmatch(k) else v) for k, v in items] for items in rewritten]
            else:
                known = new_records if name in _RECORDS else new
                kept = rewritten = [None if v is None else known[v] for v in values]
            if kept == values:
                continue
            if name in _CONTENT:
                changed = [was or v != w for was, v, w in zip(changed, values, rewritten, strict=True)]
            columns[name] = kept
            table = _replaced(table, name, kept)
        redacted = _lose_ids(table, columns, changed)
        gone = [was or lost for was, lost in zip(changed, redacted, strict=True)]
        return _without_token_texts(_without_ids(table, redacted), columns, gone) if any(gone) else table

    def _rewritten(self, cells: Iterable[str], of_records: bool = False) -> dict[str, str | None]:
        """Cell → what is kept of it. Texts are rewritten all at once; what they are part of follows in rounds."""
        done: dict[str, str | None] = {}
        waiting = set(cells)
        plain: dict[str, str | None] = {}
        written: dict[str, str] = {}
        while waiting:
            walk = _Walk(plain, written)
            for cell in waiting:
                walk.ready = True
                result = walk.records(cell) if of_records else walk.text(cell)
                if walk.ready:
                    done[cell] = result
            waiting -= done.keys()
            plain |= self._plain(sorted(walk.missing_plain))
            written |= self._by_patterns(sorted(walk.missing_written))
        return done

    def _plain(self, texts: list[str]) -> dict[str, str | None]:
        after = self._by_patterns(texts)
        if self._function is None:
            return dict(after)
        return {text: self._call(new) for text, new in after.items()}

    def _by_patterns(self, texts: list[str]) -> dict[str, str]:
        column = pa.array(texts, pa.large_string())
        for pattern, replacement in self._patterns:
            column = pc.replace_substring_regex(column, pattern, replacement)
        return dict(zip(texts, column.to_pylist(), strict=True))

    def _call(self, text: str) -> str | None:
        assert self._function is not None
        try:
            kept = self._function(text)
        except Exception as error:
            raise LakeError(
                f"lake.redact_with: {self._reference} raised {type(error).__name__} on a text of {len(text)} characters; "
                "its spans are not stored until it works"
            ) from error
        if kept is not None and not isinstance(kept, str):
            raise LakeError(f"lake.redact_with: {self._reference} returned {type(kept).__name__}; return text or None")
        return kept


class _Walk:
    """Rewrites one cell with what is known of its texts; `ready` turns false where something is missing."""

    def __init__(self, plain: dict[str, str | None], written: dict[str, str]) -> None:
        self._known_plain, self._known_written = plain, written
        self.missing_plain: set[str] = set()
        self.missing_written: set[str] = set()
        self.ready = True

    def text(self, text: str) -> str | None:
        value = json_text.read(text)
        if value is None:
            return self._hex(text) if _HEX.fullmatch(text) else self._plain(text)
        try:
            new = self._value(value)
        except RecursionError:
            return self._plain(text)
        if not self.ready or new is None:
            return None
        written = text if new == value else json_text.write(new)
        if written not in self._known_written:
            self.ready = False
            self.missing_written.add(written)
            return None
        after = self._known_written[written]
        return after if after == written or json_text.read(after) is not None else json_text.write(after)

    def _hex(self, text: str) -> str | None:
        """A text that may stand for bytes. Where rules change both, neither may stay: one gives the other away."""
        plain = self._plain(text)
        read = bytes.fromhex(text).decode(errors="replace")
        new = self.text(read)
        if new == read:
            return plain
        return new if plain == text else _UNREAD_KEPT

    def records(self, text: str) -> str | None:
        """Events and links, whose times, ids, flags and counts stay."""
        value = json_text.read(text)
        if type(value) is not list or not all(isinstance(item, dict) for item in value):
            return self.text(text)
        new = [
            json_text.as_object([(k, v if k in _RECORD_NUMBERS else self._value(v)) for k, v in item.items()])
            for item in value
        ]
        return text if new == value else json_text.write(new)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int | float):
            number = json.dumps(value)
            new = self._plain(number)
            return value if new == number else new
        if isinstance(value, list):
            return type(value)(self._value(item) for item in value)
        return json_text.as_object(
            [
                (self._plain(key) or "", _UNREAD_KEPT if _UNREAD.fullmatch(key) else self._value(item))
                for key, item in value.items()
            ]
        )

    def _plain(self, text: str) -> str | None:
        if text not in self._known_plain:
            self.ready = False
            self.missing_plain.add(text)
            return text
        return self._known_plain[text]


def _replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def _lose_ids(table: pa.Table, columns: dict[str, list[Any]], changed: list[bool]) -> list[bool]:
    """Of each row, whether it is a call whose text changed, or that came without one."""
    ops = table["op"].to_pylist()
    present = [pc.is_valid(table[name]).to_pylist() for name in _IDS]
    has_ids = [any(row) for row in zip(*present, strict=True)]
    silent = [
        a is None and b is None for a, b in zip(columns["input_messages"], columns["output_messages"], strict=True)
    ]
    return [
        (op == "llm" and new) or (ids and (new or unseen))
        for op, ids, new, unseen in zip(ops, has_ids, changed, silent, strict=True)
    ]


def _without_ids(table: pa.Table, redacted: list[bool]) -> pa.Table:
    """Calls that lose their token ids, and say why."""
    if not any(redacted):
        return table
    mask = pa.array(redacted)
    for name in (*_IDS, *FACTS):
        table = _set(table, name, pc.if_else(mask, pa.scalar(None, table.schema.field(name).type), _whole(table[name])))
    table = _set(table, "untrainable", pc.if_else(mask, "redacted", _whole(table["untrainable"])))
    return table


def _without_token_texts(table: pa.Table, columns: dict[str, list[Any]], gone: list[bool]) -> pa.Table:
    """Rows of which something was redacted, without the token ids and logprobs that attributes and JSON texts hold."""
    done: dict[str, str] = {}

    def cleaned(text: str | None) -> str | None:
        if text is not None and text not in done:
            done[text] = _tokenless(text)
        return None if text is None else done[text]

    for name, values in columns.items():
        if name in _MAPS:
            new: list[Any] = [
                [(k, cleaned(v)) for k, v in items or () if not _says_tokens(k, v)] if cut else items
                for items, cut in zip(values, gone, strict=True)
            ]
        else:
            new = [cleaned(text) if cut else text for text, cut in zip(values, gone, strict=True)]
        if new != values:
            table = _replaced(table, name, new)
    return table


def _tokenless(text: str) -> str:
    """A text without the token ids and logprobs in its JSON, also where that is in a text of it, or in hex."""
    read = bytes.fromhex(text).decode(errors="replace") if _HEX.fullmatch(text) else text
    value = json_text.read(read)
    if value is None:
        return text
    try:
        new = _tokenless_value(value)
    except RecursionError:
        return _UNREAD_KEPT
    return text if new == value else json_text.write(new)


def _tokenless_value(value: Any) -> Any:
    if isinstance(value, str):
        return _tokenless(value)
    if isinstance(value, list):
        # Maps with a key twice, and attributes sent twice, are lists of {"key", "value"}.
        pairs = [v.get("key") if isinstance(v, dict) and "value" in v else None for v in value]
        kept = [_tokenless_value(v) for k, v in zip(pairs, value, strict=True) if not _says_tokens(k, v)]
        return type(value)(kept)
    if isinstance(value, dict):
        return json_text.as_object([(k, _tokenless_value(v)) for k, v in value.items() if not _says_tokens(k, v)])
    return value


def _says_tokens(key: Any, value: Any) -> bool:
    """Whether an attribute or member holds token ids or logprobs; that they were asked for (a number, a flag) is no such."""
    asked = value is None or isinstance(value, int | float) or value in ("true", "false")
    return isinstance(key, str) and not asked and key.rpartition(".")[2] in _token_keys()


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), values)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)


@cache
def _token_keys() -> frozenset[str]:
    """Last parts of the names under which token ids or logprobs come."""
    with duckdb.connect() as con:
        aliases = con.sql(sql.text("ingest/attribute_aliases"))
        return _SERVER_TOKENS | {key.rpartition(".")[2] for key, column, *_ in aliases.fetchall() if column in _IDS}
