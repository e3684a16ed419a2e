"""However rows lie in files, compacted they are the same bytes, in the same order, each once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_core.lake import compact, parquet, schema
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import SpanFile, SpanManifest
from tests.examples import of_many

pytestmark = pytest.mark.slow  # many lakes

SPANS = schema.arrow_schema(schema.SPANS)
KEY = ("rollout_id", "start_ns", "trace_id", "span_id", "record_offset", "record_index")


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def row(number: int, content: tuple[Any, ...]) -> dict[str, Any]:
    rollout, start, identity, hashed = content
    return {c.name: None for c in schema.SPANS} | {
        "rollout_id": rollout,
        "attempt_id": None if rollout is None else "a",
        "trace_id": f"{identity:032x}",
        "span_id": f"{identity:016x}",
        "name": "x" * hashed,
        "start_ns": start,
        "attributes": [("k", "v"), ("k2", None)],
        "resource": [],
        "prompt_ids": [1, hashed],
        "response_logprobs": [-0.1, 0.3],
        "record_offset": number // 2,
        "record_index": number % 2,
        "content_hash": hashed,
    }


contents = st.tuples(
    st.sampled_from([None, "r.1", "r.2", "r.10"]),
    st.sampled_from([None, 5, 7]),
    st.integers(1, 2),
    st.integers(1, 3),
)


def fill(home: Path, rows: list[dict[str, Any]], places: list[int]) -> Lake:
    """A lake of these rows, row i in the file that places[i] names."""
    lake = Lake(home)
    files = []
    for number in sorted(set(places)):
        part = [r for r, place in zip(rows, places, strict=True) if place == number]
        path = f"spans/{number}.parquet"
        size = parquet.write_table(lake.root / path, pa.Table.from_pylist(part, schema=SPANS))
        offsets = [r["record_offset"] for r in part]
        files.append(SpanFile(path=path, rows=len(part), bytes=size, start=min(offsets), end=max(offsets) + 1))
    lake.manifests.put_spans(SpanManifest(decoded_offset=len(rows), files=files))
    return lake


def rewritten(lake: Lake) -> list[Path]:
    return [lake.root / f.path for f in compact.rewrite(lake, lake.manifests.spans().files)]


def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in sorted(rows, key=lambda r: (r["record_offset"], r["record_index"])):
        identity = tuple(r[k] for k in ("rollout_id", "attempt_id", "trace_id", "span_id", "content_hash"))
        first.setdefault(identity, r)
    return sorted(first.values(), key=lambda r: [(r[k] is None, r[k] or 0 if r[k] is None else r[k]) for k in KEY])


@of_many(examples=5)
@given(data=st.data(), found=st.lists(contents, min_size=2, max_size=24))
def test_any_spread_over_files_is_compacted_to_the_same_bytes(data: st.DataObject, found: list[Any]) -> None:
    rows = [row(i, content) for i, content in enumerate(found)]
    splits = st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)).filter(lambda x: len(set(x)) > 1)
    with folder() as one, folder() as two:
        first = fill(one, rows, data.draw(splits))
        second = fill(two, rows, data.draw(splits))
        (file,), (other,) = rewritten(first), rewritten(second)
        assert file.read_bytes() == other.read_bytes()
        table = pq.read_table(file)
        assert table.schema.equals(SPANS)
        assert table.to_pylist() == pa.Table.from_pylist(expected(rows), schema=SPANS).to_pylist()


@of_many(examples=4)
@given(data=st.data(), found=st.lists(contents, min_size=4, max_size=40))
def test_ranges_row_groups_and_files_are_cut_without_losing_or_moving_a_row(
    data: st.DataObject, found: list[Any]
) -> None:
    rows = [row(i, content) for i, content in enumerate(found)]
    places = [i % 3 for i in range(len(rows))]
    with folder() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compact, "_ROW_BYTES", data.draw(st.sampled_from([1, 20_000_000, 80_000_000])))
        patch.setattr(parquet, "ROWS_A_GROUP", data.draw(st.integers(2, 7)))
        patch.setattr(parquet, "BYTES_A_GROUP", data.draw(st.sampled_from([800, 1 << 20])))
        lake = fill(home, rows, places)
        patch.setattr(compact, "FULL_BYTES", data.draw(st.sampled_from([60_000, 1 << 20])))
        kept = [r for file in rewritten(lake) for r in pq.read_table(file).to_pylist()]
        assert kept == pa.Table.from_pylist(expected(rows), schema=SPANS).to_pylist()
