"""`lake repair` puts manifests back, makes one anew, and decodes what was rejected: each span is there once."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import lightning_core.lake.decode as decoding
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import catalog, compact
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError
from lightning_core.lake.retain import retain
from lightning_core.lake.verify import unsound
from lightning_core.lake.why import diagnose
from lightning_core.otlp.spans import encode_request
from lightning_core.spool.spool import Record, SpoolFreed, SpoolFull, SpoolWriter
from lightning_core.spool.spool_format import DAMAGED
from lightning_flows.flows.cli import main
from tests.lake_maker import derived, settings
from tests.spool_maker import record, rollouts, span, store, store_rollout
from tests.unit.test_rewards import two_agents

pytestmark = pytest.mark.slow  # many lakes


def places(lake: Lake) -> list[tuple[Any, ...]]:
    with lake.connect() as con:
        return con.execute("SELECT record_offset, record_index, rollout_id, name FROM spans ORDER BY ALL").fetchall()


def repaired(home: Path, *more: str) -> str:
    done = CliRunner().invoke(main, ["lake", "repair", "--home", str(home), *more])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_manifest_with_a_flipped_bit_is_an_error_whose_remedy_puts_it_back(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "a", "b")
    lake.manifests.put_epoch(EpochManifest(run="run", epoch=0, opened_offset=0, sealed_offset=lake.end()))
    before = places(lake)
    for path, read in (
        (lake.manifests.spans_path, lake.manifests.spans),
        (lake.root / "manifests/run/0000.json", lake.manifests.epochs),
    ):
        sound = path.read_bytes()
        for at in {*range(0, len(sound), len(sound) // 40), *range(76, 82)}:
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
            with pytest.raises(LakeError, match=rf"{path.name}: cannot be read.*lake repair --home {tmp_path}"):
                read()
        assert f"{path.relative_to(lake.root)}: put back from its copy" in repaired(tmp_path)
        assert path.read_bytes() == sound
    assert places(lake) == before and repaired(tmp_path) == "nothing to repair\n"


def test_an_epochs_manifest_without_a_copy_is_moved_away_and_blocks_nobody(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "a")
    for number in (0, 1):
        lake.manifests.put_epoch(EpochManifest(run="run", epoch=number, opened_offset=0))
    for folder in ("manifests", "copies"):
        (lake.root / folder / "run" / "0001.json").write_text("{")
    assert "manifests/run/0001.json: moved to damaged/" in repaired(tmp_path)
    assert [epoch.epoch for epoch in lake.manifests.epochs()] == [0]
    assert (lake.root / "damaged" / "manifests-run-0001.json").read_text() == "{"


def lost(lake: Lake) -> None:
    for path in (lake.manifests.spans_path, lake.manifests.copy_of(lake.manifests.spans_path)):
        path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("with_catalog", [True, False])
def test_a_manifest_is_made_anew_from_the_files_and_each_place_stands_once(tmp_path: Path, with_catalog: bool) -> None:
    lake = rollouts(tmp_path, "a", "b", "c")
    compact.compact(lake, everything=True)  # its sources lie there for ten minutes more
    store_rollout(tmp_path, "d")
    lake.ingest()
    lake.rebuild_catalog()
    store(tmp_path, [record(b"\xff no request"), record(encode_request({}, [span("late")]), "r.1")])
    before, manifest = places(lake), lake.manifests.spans()
    lost(lake)
    if not with_catalog:
        (lake.root / "catalog.duckdb").unlink()
    assert "manifests/spans.json: made anew from" in repaired(tmp_path)
    assert places(lake) == before
    assert lake.manifests.spans().decoded_offset == manifest.decoded_offset
    with pytest.raises(LakeError, match="--unredacted"):
        lake.ingest()
    done = CliRunner().invoke(main, ["ingest", "--unredacted", "--home", str(tmp_path)])
    assert done.output.startswith("1 spans decoded, 1 rejected")
    assert len(places(lake)) == len(before) + 1 and lake.ingest().spans == 0


def test_what_retention_removed_does_not_come_back_from_the_files(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "a", run="old")
    rollouts(tmp_path, "b", run="new")
    compact.compact(lake, everything=True)
    for run in ("old", "new"):
        lake.manifests.put_epoch(EpochManifest(run=run, epoch=0, opened_offset=0, sealed_offset=lake.end()))
    retain(lake, runs=["old"])
    before = places(lake)
    assert {row[2] for row in before} == {"b"} and len(list((lake.root / "spans").glob("*.parquet"))) == 4
    lost(lake)
    repaired(tmp_path)
    assert places(lake) == before


def test_one_unreadable_file_among_them_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "a", "b", "c")
    bad = lake.root / lake.manifests.spans().files[1].path
    bad.write_bytes(b"PAR1 no more")
    lost(lake)
    assert f"spans/{bad.name}: cannot be read" in repaired(tmp_path)
    assert {row[2] for row in places(lake)} == {"a", "c"}
    assert (lake.root / "damaged" / bad.name).read_bytes() == b"PAR1 no more"
    with catalog.connect(lake.root) as con:
        assert con.execute("SELECT count(*) FROM rejections").fetchall() == [(1,)]


def test_what_an_older_decoder_rejected_is_decoded_anew_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ExportTraceServiceRequest.FromString(
        encode_request({"service.name": "s"}, [span("one", 1), span("two", 2), span("bad", 3)])
    )
    request.resource_spans[0].scope_spans[0].spans[2].trace_id = b""
    body, poison = request.SerializeToString(), encode_request({}, [span("whole", 9)])
    store(tmp_path, [record(body), Record("r.2", "a", "token", 7, "attempt", poison), record(b"\xff")])
    lake, real, columns = Lake(tmp_path), decoding._decode, decoding.span_columns

    def older(records: list[tuple[int, Record]], *secret: str | None) -> Any:
        if any(each.body == poison for _, each in records):
            raise TypeError("Recursion limit reached")
        return real(records, *secret)

    def without_two(found: Any, block: Any, *rest: Any) -> Any:
        for raw, number, index, _ in [sent for sent in block if b"two" in sent[0]]:
            found.reject(number, index, "an older decoder could not read it", raw)
        return columns(found, [sent for sent in block if b"two" not in sent[0]], *rest)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_decode", older)
        patch.setattr(decoding, "span_columns", without_two)
        done = lake.ingest()
    assert (done.spans, done.rejected) == (1, 4)
    (file,) = (tmp_path / "spool" / "rejected").glob("*.jsonl")
    entries, manifest = file.read_bytes(), lake.manifests.spans_path.read_bytes()

    told = repaired(tmp_path)
    assert "2 spans decoded that were rejected before\n2 spans stay rejected" in told
    with lake.connect() as con:
        found = con.execute(
            "SELECT name, rollout_id, scope, sender, resource['service.name'] FROM spans ORDER BY record_offset, record_index"
        ).fetchall()
    assert [row[0] for row in found] == ["one", "two", "whole"]
    assert found[0][1:] == found[1][1:] and found[2][1:3] == ("r.2", "token") and found[2][3] != found[0][3]
    assert [json.loads(line)["reason"][:20] for line in file.read_text().splitlines()] == [
        "the span is without ",
        "the body is no Expor",
    ]
    assert lake.manifests.spans().rejected_spans == 2

    again = places(lake)
    assert repaired(tmp_path) == "2 spans stay rejected (table rejections)\n" and places(lake) == again
    file.write_bytes(entries)  # killed before it took the entries away …
    assert "2 spans stay rejected" in repaired(tmp_path) and places(lake) == again
    file.write_bytes(entries)  # … and before the manifest
    lake.manifests.spans_path.write_bytes(manifest)
    repaired(tmp_path)
    assert places(lake) == again and lake.manifests.spans().rejected_spans == 2
    assert compact.compact(lake, everything=True).after == 1 and places(lake) == again


def test_a_lake_put_back_from_an_older_copy_goes_on_behind_what_the_spool_has_freed(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool", 1 << 30, segment_bytes=200)

    def more(name: str) -> None:
        asyncio.run(_append(writer, record(encode_request({}, [span(name, len(places(lake)) + 1)]))))

    lake = Lake(tmp_path)
    lake.root.mkdir()
    more("one")
    lake.ingest()
    shutil.copytree(lake.root, tmp_path / "copy")
    for name in ("two", "three", "four"):
        more(name)
        lake.ingest()
    more("five")
    shutil.rmtree(lake.root)
    (tmp_path / "copy").rename(lake.root)
    with pytest.raises(SpoolFreed, match="lake repair"):
        lake.ingest()
    assert "bytes of requests lay between and are lost" in repaired(tmp_path)
    assert lake.ingest().spans >= 1 and {row[3] for row in places(lake)} >= {"one", "five"}
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        assert con.execute("SELECT reason FROM rejections").fetchall() == [(DAMAGED,)]
    writer.close()


async def _append(writer: SpoolWriter, what: Record) -> int:
    return await writer.append(what)


def test_a_full_spool_takes_more_once_the_command_that_it_names_has_run(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool", 20_000, segment_bytes=2_000)
    one = record(encode_request({}, [span("x" * 500)]))
    with pytest.raises(SpoolFull, match=f"lightning-flows ingest --home {tmp_path}"):
        for _ in range(100):
            asyncio.run(_append(writer, one))
    assert CliRunner().invoke(main, ["ingest", "--home", str(tmp_path)]).exit_code == 0
    time.sleep(0.3)  # it looks at its folder so often
    asyncio.run(_append(writer, one))
    writer.close()


@pytest.mark.parametrize("damage", ["first", "cut", "empty", "middle"])
def test_a_damaged_catalog_is_made_anew_by_the_command_that_its_error_names(tmp_path: Path, damage: str) -> None:
    lake = rollouts(tmp_path, "a")
    path = lake.rebuild_catalog()
    sound = path.read_bytes()
    bad = {
        "first": bytes(100) + sound[100:],
        "cut": sound[:5000],
        "empty": b"",
        "middle": sound[:20_000] + bytes(3000) + sound[23_000:],
    }
    path.write_bytes(bad[damage])
    for command in (["sql", "FROM spans"], ["sql"], ["why"], ["explain", "a"]):
        done = CliRunner().invoke(main, [*command, "--home", str(tmp_path)])
        assert done.exit_code == 1 and "`lightning-flows ingest` makes it anew" in done.output, (
            command,
            done.output,
            done.exception,
        )
    assert CliRunner().invoke(main, ["ingest", "--home", str(tmp_path)]).exit_code == 0
    done = CliRunner().invoke(
        main, ["sql", "SELECT count(*) AS n FROM spans", "--home", str(tmp_path), "--format", "csv"]
    )
    assert done.output == "n\n4\n"


def test_a_damaged_table_of_an_epoch_is_derived_again(tmp_path: Path) -> None:
    lake, epoch = derived(tmp_path, two_agents(0)[0].rows)
    table = lake.path(epoch.tables["sequences"])
    sound = table.read_bytes()
    table.write_bytes(sound[:50] + b"?" + sound[51:])
    done = CliRunner().invoke(main, ["lake", "verify", "--home", str(tmp_path)])
    assert done.exit_code == 1 and "derive epoch 0 of run run again (`--from sequences`)" in done.output
    derive(Epoch(settings(tmp_path), epoch), "key")
    assert table.read_bytes() == sound and [*unsound(lake)] == []


def test_a_lost_file_is_an_error_of_every_epoch_whose_spans_it_had(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for number in range(3):
        lake.manifests.put_epoch(EpochManifest(run="run", epoch=number, opened_offset=lake.end()))
        rollouts(tmp_path, f"r.{number}", epoch=number)
        epoch = lake.manifests.epoch("run", number)
        assert epoch is not None
        lake.manifests.put_epoch(epoch.model_copy(update={"sealed_offset": lake.end()}))
    rollouts(tmp_path, "of nobody")
    compact.compact(lake, everything=True)
    (file,) = lake.manifests.spans().files
    (lake.root / file.path).unlink()
    repaired(tmp_path)
    with catalog.connect(lake.root) as con:
        found = diagnose(con, "run")
        assert [one.epochs for one in found if one.rule == "damaged_spool"] == [[0, 1, 2]]
        assert con.execute("SELECT sum(spans)::INTEGER FROM rejections").fetchall() == [(16,)]
