"""What is decoded in parts is what is decoded at once."""

from __future__ import annotations

import pytest

from bench.spans import Kind, request, request_spans
from lightning_core.lake import decode
from lightning_core.lake.decode import Decoder
from lightning_core.spool.spool import Record


def test_parts_may_have_other_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: tuple[Kind, ...] = ("large", "small", "large")
    bodies = [request(request_spans(kind, seed, 4), {}) for seed, kind in enumerate(kinds)]
    records = [(i, i + 1, Record("r", "a", "path", 1, "otlp", body)) for i, body in enumerate(bodies)]
    at_once, _ = Decoder().decode(records)
    monkeypatch.setattr(decode, "_AT_ONCE", 1)
    in_parts, rejected = Decoder().decode(records)
    assert in_parts.num_rows == 12 and not rejected
    assert in_parts.equals(at_once)
