"""Rewrite texts of spans by patterns before they reach Parquet; a call whose text changed keeps no token ids.

In JSON every text is matched by itself, then the JSON as it is written. Not looked into: bytes, which are stored as hex.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_core import names
from lightning_core.config import LakeSettings, SettingsError
from lightning_core.lake import schema
from lightning_core.lake.number_facts import FACTS

# Names and ids that rows are found, joined and counted by; every other text is rewritten, also of columns to come.
_IDENTIFIERS = {
    *("rollout_id", "attempt_id", "declared_rollout_id", "declared_attempt_id", "scope", "sender", "refused"),
    *("run", "mode", "outcome", "prompts"),
    *("trace_id", "span_id", "parent_span_id", "kind", "op", "operation", "span_role", "status", "instrumentation"),
    *("group_id", "task_id", "agent_name_source", "policy", "policy_version", "model", "response_id"),
    *("finish_reasons", "untrainable", "tool_call_id", "reward_name", "reward_source"),
}
_RECORDS = ("events", "links")  # JSON lists of objects, of which these members are no text:
_RECORD_NUMBERS = {"time_ns", "trace_id", "span_id", "flags", "dropped_attributes_count"}
_MAPS = ("attributes", "resource")
_TEXTS = [c.name for c in schema.SPANS if c.type == "VARCHAR" and c.name not in _IDENTIFIERS] + list(_MAPS)
_OURS = {names.REWARD_GRADER, names.ROLLOUT_ID, names.ATTEMPT_ID}  # attributes that other rows refer to
# What the token ids of a call can be read back into.
_CONTENT = {
    *("task", "output", "input_messages", "output_messages", "tool_arguments", "tool_result", "attributes", "events"),
}
_IDS = ("prompt_ids", "response_ids", "response_logprobs")
_TOKEN_KEY = re.compile(r"(?s).*(token_ids|logprobs)")
# The same as a key, or as the name of an attribute sent twice, of JSON within a text, however deep.
_TOKEN_JSON = re.compile(r'(?:token_ids|logprobs)\\*"\s*(?:,|:\s*\\*"?[\[{])')
# Bytes that the decoder could not read, which no pattern can be trusted to read either.
_UNREAD = re.compile(r"otlp\.(invalid_utf8|unknown_fields|(resource|scope)\.unreadable)_*")
_UNREAD_JSON = (r'("otlp\.(?:too_deep|unknown)\\*":\s*\\*")[0-9a-fA-F]+', r"\1[redacted]")
_REDACTED = "[redacted]"
_ESCAPED = re.compile(r"(?:\\+u[0-9a-fA-F]{4})+|\\+/")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_ROWS = 2048  # rewritten at a time


class Redaction:
    """The patterns of a lake. Without any it leaves everything as it is."""

    def __init__(self, settings: LakeSettings | None = None) -> None:
        """Take the patterns of settings. Raises SettingsError for a pattern or replacement that RE2 cannot take."""
        self._patterns = [(p.pattern, p.replacement) for p in settings.redact] if settings is not None else []
        for number, (pattern, replacement) in enumerate(self._patterns):
            try:
                pc.replace_substring_regex(pa.array([""]), pattern, replacement)
            except pa.ArrowInvalid as error:
                raise SettingsError(f"lake.redact.{number}: {pattern!r} → {replacement!r}: {error}") from None

    @classmethod
    def of(cls, settings: LakeSettings) -> Redaction | None:
        """Return the patterns that settings give; None where they give none."""
        return cls(settings) if settings.redact else None

    @property
    def digest(self) -> str | None:
        """Return the digest of the patterns; None where there are none."""
        return hashlib.sha256(json.dumps(self._patterns).encode()).hexdigest()[:16] if self._patterns else None

    def spans(self, table: pa.Table) -> pa.Table:
        """Return rows of schema.SPANS, rewritten."""
        if not self._patterns or not table.num_rows:
            return table
        parts = [self._slice(table.slice(at, _ROWS)) for at in range(0, table.num_rows, _ROWS)]
        return pa.concat_tables(parts).cast(table.schema)

    def rejected(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return spans that could not be decoded without their bytes; place and reason stay."""
        if not self._patterns:
            return found
        new = self._rewritten({r["reason"] for r in found})
        return [
            {k: v for k, v in r.items() if k not in ("span", "request")} | {"reason": new.get(r["reason"], r["reason"])}
            for r in found
        ]

    def _slice(self, table: pa.Table) -> pa.Table:
        columns = {name: table[name].to_pylist() for name in _TEXTS}
        texts: set[str] = set()
        for name, values in columns.items():
            for value in values:
                _applied(lambda text: texts.add(text) or text, name, value)  # type: ignore[func-returns-value]
        new = self._rewritten(texts)
        changed = [False] * table.num_rows  # in what the token ids stand for
        for name, values in columns.items():
            columns[name] = [_applied(lambda text: new.get(text, text), name, value) for value in values]
            if name in _CONTENT:
                changed = [was or v != w for was, v, w in zip(changed, values, columns[name], strict=True)]
        has_ids = [any(row) for row in zip(*(pc.is_valid(table[n]).to_pylist() for n in _IDS), strict=True)]
        for i, has in enumerate(has_ids):  # without a text nothing shows what the ids stand for
            changed[i] |= has and columns["input_messages"][i] is None and columns["output_messages"][i] is None
        for name, values in columns.items():
            columns[name] = [_readable(name, value, gone) for value, gone in zip(values, changed, strict=True)]
        untrainable = [
            c and (has or op == "llm") for c, has, op in zip(changed, has_ids, table["op"].to_pylist(), strict=True)
        ]
        for place, field in enumerate(table.schema):
            if field.name in columns:
                table = table.set_column(place, field, pa.array(columns[field.name], field.type))
            elif field.name in (*_IDS, *FACTS, "untrainable"):
                mask, value = (untrainable, "redacted") if field.name == "untrainable" else (changed, None)
                kept = pc.if_else(pa.array(mask), pa.scalar(value, field.type), table[field.name].combine_chunks())
                table = table.set_column(place, field, kept)
        return table

    def _rewritten(self, cells: set[str]) -> dict[str, str]:
        """Return cell → what is kept of it: the texts in its JSON are rewritten, then the JSON as it is written."""
        texts: set[str] = set()
        for cell in cells:
            _each_text(lambda text: texts.add(text) or text, cell)  # type: ignore[func-returns-value]
        new = self._matched(texts)
        written = {cell: _each_text(lambda text: new.get(text, text), cell) for cell in cells}
        again = self._matched({text for text in written.values() if _json(text) is not None})
        kept = {cell: again.get(text, text) for cell, text in written.items()}
        return {
            c: json.dumps(k) if c != k and _json(c) is not None and _json(k) is None else k for c, k in kept.items()
        }

    def _matched(self, texts: set[str]) -> dict[str, str]:
        """Return text → rewritten text, for each text that a pattern changes."""
        ordered = list(texts)
        before = column = pa.array([_ESCAPED.sub(_unescaped, text) for text in ordered], pa.large_string())
        for pattern, replacement in (*self._patterns, _UNREAD_JSON):
            column = pc.replace_substring_regex(column, pattern, replacement)
        return {ordered[i]: column[i].as_py() for i in pc.indices_nonzero(pc.not_equal(before, column)).to_pylist()}


def _each_text(rewrite: Callable[[str], str], text: str) -> str:
    """Apply `rewrite` to every text and number of a text's JSON, however deep; to the text itself where it is none."""

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return _each_text(rewrite, value)
        if isinstance(value, list):
            return [of(item) for item in value]
        if isinstance(value, dict):
            return {key: of(item) for key, item in value.items()}
        number = json.dumps(value)
        new = rewrite(number)
        return value if new == number else new

    value = _json(text)
    if value is None:
        return rewrite(text)
    new = json.dumps(of(value), ensure_ascii=False)
    return text if new == json.dumps(value, ensure_ascii=False) else new


def _json(text: str) -> Any:
    """Return the object, list or text that a text holds as JSON, else None; half a character becomes `?`."""
    try:
        value = json.loads(text, strict=False) if text[:1] in ("{", "[", '"') else None
        if value is not None and _SURROGATE.search(text):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        return value
    except (ValueError, RecursionError):
        return None


def _unescaped(escapes: re.Match[str]) -> str:
    r"""Return the characters of `\u00e9\ud83d\ude00` or `\/`; those that JSON cannot hold as they are stay escaped."""
    if escapes[0].endswith("/"):
        return "/"
    units = bytes.fromhex(re.sub(r"\\+u", "", escapes[0]))
    characters = units.decode("utf-16-be", "surrogatepass")
    return "".join(c if c.isprintable() and c not in '"\\' else json.dumps(c)[1:-1] for c in characters)


def _readable(name: str, value: Any, tokenless: bool) -> Any:
    """Return a cell without bytes the decoder could not read, and without token ids and logprobs if `tokenless`."""
    if value is None:
        return None
    if name not in _MAPS:
        return _REDACTED if tokenless and _TOKEN_JSON.search(value) else value
    return [
        (k, _REDACTED if _UNREAD.fullmatch(k) or (tokenless and v is not None and _TOKEN_JSON.search(v)) else v)
        for k, v in value
        if not (tokenless and _TOKEN_KEY.fullmatch(k))
    ]


def _applied(rewrite: Callable[[str], str], name: str, value: Any) -> Any:
    """Apply `rewrite` to every text in a cell of a column."""
    if value is None:
        return None
    if name in _MAPS:
        return [(k, v if v is None or k in _OURS else rewrite(v)) for k, v in value]
    if name not in _RECORDS:
        return rewrite(value)
    records = json.loads(value)
    new = [
        {k: v if k in _RECORD_NUMBERS else json.loads(rewrite(json.dumps(v, ensure_ascii=False))) for k, v in r.items()}
        for r in records
    ]
    # As text, since NaN is not equal to itself.
    return (
        value if json.dumps(new) == json.dumps(records) else json.dumps(new, ensure_ascii=False, separators=(",", ":"))
    )
