"""What is decoded in parts is what is decoded at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bench.spans import request, request_spans
from lightning_core.lake import decode
from lightning_core.lake.decode import Decoder
from lightning_core.lake.texts import taken_views
from lightning_core.spool.spool import Record


def test_parts_may_have_other_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [request(request_spans(kind, seed, 4), {}) for seed, kind in enumerate(("large", "small", "large"))]
    records = [(i, i + 1, Record("r", "a", "path", 1, "otlp", body)) for i, body in enumerate(bodies)]
    at_once, _ = Decoder().decode(records)
    monkeypatch.setattr(decode, "_AT_ONCE", 1)
    in_parts, rejected = Decoder().decode(records)
    assert in_parts.num_rows == 12 and not rejected
    assert in_parts.equals(at_once)


def test_string_views_are_taken_like_strings() -> None:
    """With NULLs, empty texts, ones that a view holds itself and longer ones, from the middle of an array, in any order."""
    texts = ["a text that is longer than a view", None, "", "twelve bytes", "thirteen byte", "ä"] * 3
    rows = np.array([5, 5, 0, 9, 3, 1, 2, 4], np.int32)
    for sent in (texts, [text or "" for text in texts]):
        views = pa.array(["before", *sent], pa.string_view()).slice(1)
        taken = taken_views(views, rows)
        taken.validate(full=True)
        assert taken.to_pylist() == [sent[row] for row in rows]
