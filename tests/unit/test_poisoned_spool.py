"""Nothing that a request holds may stop the decoder for good, and no acknowledged span may be passed over in silence."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lightning_core.gateway import intake
from lightning_core.gateway.main import _decoded_offset
from lightning_core.lake import catalog
from lightning_core.lake import decode as decoding
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from lightning_core.otlp.messages import OtlpError
from lightning_core.otlp.receive import JSON, parse_request
from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.spool import spool
from lightning_core.spool.spool import Record, SpoolWriter
from lightning_core.spool.spool_format import DAMAGED


def body(number: int) -> bytes:
    return encode_request({}, [SpanData("step", 1_000, 2_000, "01" * 16, f"{number:016x}")])


def fill(home: Path, bodies: list[bytes], begin: int = 0) -> None:
    async def write() -> None:
        writer = SpoolWriter(home / "spool", 1 << 30, begin=begin)
        for each in bodies:
            await writer.append(Record("r.1", "a1", "path", 5, "otlp", each))
        writer.close()

    asyncio.run(write())


def names_in(lake: Lake) -> int:
    with lake.connect() as con:
        ((count,),) = con.execute("SELECT count(DISTINCT span_id) FROM spans").fetchall()
    return int(count)


def test_a_record_on_which_the_decoder_fails_is_set_aside_and_the_others_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = body(99)
    real = decoding._decode

    def failing(records: list[tuple[int, Record]], *secret: str | None) -> Any:
        if any(record.body == poison for _, record in records):
            raise TypeError("Recursion limit reached")
        return real(records, *secret)

    monkeypatch.setattr(decoding, "_decode", failing)
    fill(tmp_path, [body(1), body(2), poison, body(3)])
    lake = Lake(tmp_path)
    done = lake.ingest()
    assert (done.spans, done.rejected, names_in(lake)) == (3, 1, 3)
    (file,) = (tmp_path / "spool" / "rejected").glob("*.jsonl")
    (entry,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert entry["reason"] == "the decoder failed on the whole request: TypeError: Recursion limit reached"
    assert bytes.fromhex(entry["span"]) == poison


def test_where_memory_is_short_spans_wait_or_fewer_are_decoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, [body(number) for number in range(1, 9)])
    lake = Lake(tmp_path)
    real, conclude = decoding.Decoder.__init__, decoding._conclude

    def with_one_megabyte(self: decoding.Decoder, secret: str | None = None) -> None:
        real(self, secret)
        self._engine[0].execute("SET memory_limit = '1MB'; SET temp_directory = ''")

    with monkeypatch.context() as patch:
        patch.setattr(decoding.Decoder, "__init__", with_one_megabyte)
        with pytest.raises(LakeError, match="cannot be decoded for now; the spool keeps them"):
            lake.ingest()
    assert not (tmp_path / "spool" / "rejected").exists()

    def enough_for_three(con: duckdb.DuckDBPyConnection, decoded: Any) -> Any:
        if decoded.num_rows > 3:
            raise duckdb.OutOfMemoryException("could not allocate block")
        return conclude(con, decoded)

    monkeypatch.setattr(decoding, "_conclude", enough_for_three)
    done = lake.ingest()
    assert (done.spans, done.rejected, names_in(lake)) == (8, 0, 8)
    assert "trying with half of them" in caplog.text


def test_a_record_that_the_disk_damaged_is_counted_and_the_others_are_stored(tmp_path: Path) -> None:
    fill(tmp_path, [body(1), body(2), body(3)])
    (path,) = (tmp_path / "spool").glob("*.seg")
    data = bytearray(path.read_bytes())
    data[data.index(body(2)) + 3] ^= 1
    path.write_bytes(data)
    lake = Lake(tmp_path)
    done = lake.ingest()
    assert (done.spans, done.rejected, names_in(lake)) == (2, 1, 2)
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        assert con.execute("SELECT reason, spans FROM rejections").fetchall() == [(DAMAGED, 1)]
    fill(tmp_path, [body(4)])
    assert (lake.ingest().spans, names_in(lake)) == (1, 3)


def test_half_a_surrogate_pair_in_a_json_number_is_a_reason_and_no_obstacle(tmp_path: Path) -> None:
    value = {"key": "k", "value": {"doubleValue": "\ud800"}}
    spans = [
        {"traceId": "01" * 16, "spanId": f"{n:016x}", "name": "s", "attributes": [value] if n == 1 else []}
        for n in (1, 2)
    ]
    request = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    parsed = parse_request(json.dumps(request).encode(), JSON, None, 1 << 20)
    assert parsed.rejected == 1
    parsed.reason.encode()  # goes into the answer
    fill(tmp_path, [parsed.body])
    lake = Lake(tmp_path)
    done = lake.ingest()
    assert (done.spans, done.rejected) == (1, 1)
    lake.rebuild_catalog()  # reads what was set aside


def test_a_new_spool_begins_behind_what_the_lake_has_decoded(tmp_path: Path) -> None:
    fill(tmp_path, [body(1), body(2)])
    lake = Lake(tmp_path)
    lake.ingest()
    shutil.rmtree(tmp_path / "spool")
    fill(tmp_path, [body(3)], begin=_decoded_offset(tmp_path))
    assert lake.ingest().spans == 1
    assert names_in(lake) == 3


def test_an_older_spool_put_back_is_written_on_behind_what_the_lake_has_decoded(tmp_path: Path) -> None:
    fill(tmp_path, [body(1)])
    shutil.copytree(tmp_path / "spool", tmp_path / "backup")
    fill(tmp_path, [body(2), body(3)])
    lake = Lake(tmp_path)
    lake.ingest()
    shutil.rmtree(tmp_path / "spool")
    (tmp_path / "backup").rename(tmp_path / "spool")
    fill(tmp_path, [body(4)], begin=_decoded_offset(tmp_path))
    fill(tmp_path, [body(5)], begin=_decoded_offset(tmp_path))
    assert lake.ingest().spans == 2
    fill(tmp_path, [body(6)], begin=_decoded_offset(tmp_path))
    assert lake.ingest().spans == 1
    assert names_in(lake) == 6


def test_what_is_set_aside_twice_because_of_a_crash_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, [b"\x0a\x04\x12\x02\x12\x00", body(1)])  # a span without ids
    lake = Lake(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(type(lake.manifests), "put_spans", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lake.ingest()
    fill(tmp_path, [body(2)])
    assert lake.ingest().rejected == 1
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        assert con.execute("SELECT sum(spans) FROM rejections").fetchall() == [(1,)]
    assert names_in(lake) == 2


def test_a_spool_that_is_not_the_lakes_is_an_error_and_not_nothing_to_do(tmp_path: Path) -> None:
    fill(tmp_path, [body(1), body(2)])
    lake = Lake(tmp_path)
    lake.ingest()
    shutil.rmtree(tmp_path / "spool")
    fill(tmp_path, [body(3)])
    assert spool.durable_end(tmp_path / "spool") > 0
    with pytest.raises(LakeError, match="the spool was removed, or is another lake's"):
        lake.ingest()


def test_a_decoder_that_another_one_has_passed_has_nothing_to_do(tmp_path: Path) -> None:
    fill(tmp_path, [body(1)])
    asked_for = spool.durable_end(tmp_path / "spool")
    fill(tmp_path, [body(2)])
    lake = Lake(tmp_path)
    decoded = lake.ingest().decoded_offset
    assert decoded > asked_for
    done = lake.ingest(until=asked_for)
    assert (done.spans, done.decoded_offset) == (0, decoded)


def test_what_is_thrown_away_is_not_inflated_without_a_limit() -> None:
    with pytest.raises(OtlpError) as refused:
        intake._refused("metrics", b'{"resourceMetrics":[' + b"{}," * 2_000_000 + b"{}]}", JSON, None)
    assert refused.value.status == 413
