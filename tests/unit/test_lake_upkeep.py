"""Retries, compaction, retention and failing disks: what readers see stays the same, what goes is reported."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lightning_core.epoch.decoding import ingest
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import ask, catalog, compact, parquet, schema
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError
from lightning_core.lake.retain import require_spans, retain
from lightning_core.otlp.spans import encode_request
from lightning_core.spool.spool_format import DAMAGED
from lightning_flows.flows.cli import main
from tests.lake_maker import settings
from tests.spool_maker import record, rollout_spans, rollouts, span, store, store_rollout

pytestmark = pytest.mark.slow  # many lakes

DAY_NS = 86_400_000_000_000


def spans(lake: Lake) -> list[tuple[Any, ...]]:
    with lake.connect() as con:
        return con.execute("SELECT rollout_id, span_id, op FROM spans ORDER BY ALL").fetchall()


def sealed(lake: Lake, run: str = "run", epoch: int = 0, opened: int = 0) -> EpochManifest:
    manifest = EpochManifest(
        run=run, epoch=epoch, opened_offset=opened, sealed_offset=lake.manifests.spans().decoded_offset
    )
    lake.manifests.put_epoch(manifest)
    return manifest


def derived(lake: Lake, epoch: EpochManifest) -> dict[str, str]:
    """Derive an epoch; digest of every table."""
    derive(Epoch(settings(lake.root.parent), epoch), "key")
    return {name: table.digest for name, table in epoch.tables.items()}


def every_view(lake: Lake) -> dict[str, list[str]]:
    """The rows of every view of the catalog."""
    with catalog.connect(lake.root) as con:
        return {view: sorted(map(str, con.execute(f"FROM {view}").fetchall())) for view in catalog.VIEWS}


def test_a_batch_that_comes_again_is_stored_once_however_late(tmp_path: Path) -> None:
    body = encode_request({}, rollout_spans("r.1"))
    lake = Lake(tmp_path)
    store(tmp_path, [record(body), record(body)])
    assert (lake.ingest().spans, lake.manifests.spans().retries) == (4, 4)
    first = spans(lake)
    store(tmp_path, [record(body, received_ns=9), record(encode_request({}, [span("other", 7)]))])
    done = lake.ingest()
    assert (done.spans, done.retries, lake.manifests.spans().retries) == (1, 4, 8)
    assert spans(lake) == sorted([*first, ("r.1", "0000000000000007", "other")])


def test_one_id_with_other_content_is_another_span(tmp_path: Path) -> None:
    store(tmp_path, [record(encode_request({}, [span("a", 1)])), record(encode_request({}, [span("b", 1)]))])
    assert Lake(tmp_path).ingest().spans == 2


def test_a_retry_without_a_start_time_or_a_scope_is_found_too(tmp_path: Path) -> None:
    body = encode_request({}, [span("a", 1, start_ns=0)])
    lake = Lake(tmp_path)
    for _ in range(2):
        store(tmp_path, [record(body, None, None)])
        lake.ingest()
    assert len(spans(lake)) == 1


def test_compaction_changes_no_answer_and_no_derived_byte(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, *(f"r.{i}" for i in range(3)))
    epoch = sealed(lake)
    store_rollout(tmp_path, "r.0", reward=3.0)  # late: its root is a retry, its reward is not
    lake.ingest()
    lake.rebuild_catalog()
    before, answers = derived(lake, epoch), every_view(lake)
    assert compact.compact(lake, everything=True).before == 4
    assert len(lake.manifests.spans().files) == 1
    assert derived(lake, epoch) == before
    assert every_view(lake) == answers


def test_compaction_drops_what_two_files_hold(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "r.1", "r.2")
    manifest = lake.manifests.spans()
    (first, second) = manifest.files
    table = pq.read_table(lake.root / first.path)
    moved = table.set_column(
        table.schema.get_field_index("record_offset"), table.schema.field("record_offset"), [[second.end + 1] * 4]
    )
    parquet.write_table(lake.root / "spans/again.parquet", moved)  # as a lake of an older version may have it
    manifest.files.append(
        second.model_copy(update={"path": "spans/again.parquet", "end": second.end + 2, "digest": None})
    )
    lake.manifests.put_spans(manifest)
    assert len(spans(lake)) == 12
    assert compact.compact(lake, everything=True).retries == 4
    with lake.connect() as con:
        assert con.execute("SELECT max(record_offset) < ? FROM spans", [second.end]).fetchall() == [(True,)]
    assert len(spans(lake)) == 8


def test_small_files_are_merged_after_decoding_when_there_are_enough(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, *(f"r.{i}" for i in range(9)))
    files = lake.manifests.spans().files
    assert len(files) == 2 and files[0].rows == 32
    assert len(spans(lake)) == 36


def test_a_replaced_file_stays_for_those_who_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = rollouts(tmp_path, "r.1", "r.2")
    lake.rebuild_catalog()
    old = [lake.root / f.path for f in lake.manifests.spans().files]
    with catalog.connect(lake.root) as analyst, lake.connect() as reader:
        compact.compact(lake, everything=True)
        monkeypatch.setattr(compact, "GRACE_S", 0.0)
        assert compact.tidy(lake, 0) == 0, "a connection of the lake is open"
        for con in (analyst, reader):
            assert con.execute("SELECT count(*) FROM spans").fetchall() == [(8,)]
    assert compact.tidy(lake, 600) == 0, "the grace is not over"
    assert compact.tidy(lake, 0) > 0
    assert [path.exists() for path in old] == [False, False]
    assert lake.manifests.spans().retired == []
    assert len(spans(lake)) == 8


def test_a_compaction_killed_before_the_catalog_was_renewed_removes_nothing_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = rollouts(tmp_path, "r.1", "r.2")
    lake.rebuild_catalog()
    with monkeypatch.context() as killed:
        killed.setattr(Lake, "rebuild_catalog", lambda self: None)
        compact.compact(lake, everything=True)
    with catalog.connect(lake.root) as analyst:
        compact.tidy(lake, 0.2)
        assert analyst.execute("SELECT count(*) FROM spans").fetchall() == [(8,)], "the grace begins with the catalog"
    time.sleep(0.3)
    assert compact.tidy(lake, 0.2) > 0
    with catalog.connect(lake.root) as analyst:
        assert analyst.execute("SELECT count(*) FROM spans").fetchall() == [(8,)]


def test_what_a_killed_writer_left_is_removed_once_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = rollouts(tmp_path, "r.1")
    left = lake.root / "spans" / "left.parquet"
    left.write_bytes(b"x")
    compact.tidy(lake)
    assert left.exists(), "it may be in the making"
    monkeypatch.setattr(compact, "ORPHAN_S", -1.0)
    compact.tidy(lake)
    assert not left.exists() and len(spans(lake)) == 4


@pytest.mark.parametrize("name", ["write_table", "span_writer"])
def test_a_full_disk_is_an_error_that_leaves_the_lake_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lake = rollouts(tmp_path, "r.1", "r.2")
    before, kept = spans(lake), (lake.root / "manifests/spans.json").read_bytes()
    store_rollout(tmp_path, "r.3")
    with monkeypatch.context() as full:

        def no_space(*_: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(parquet, "put_in_place", no_space)
        with pytest.raises(LakeError, match="No space left"):
            if name == "write_table":
                lake.ingest()
            else:
                compact.compact(lake, everything=True)
    assert spans(lake) == before and (lake.root / "manifests/spans.json").read_bytes() == kept
    named = {Path(f.path).name for f in lake.manifests.spans().files}
    assert {p.name for p in (lake.root / "spans").iterdir()} == named
    lake.ingest()
    compact.compact(lake, everything=True)
    assert len(spans(lake)) == 12


def test_a_compaction_that_fails_after_decoding_is_said_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lake = rollouts(tmp_path, *(f"r.{i}" for i in range(7)))
    store_rollout(tmp_path, "r.7")

    def fails(*_: object, **__: object) -> None:
        raise LakeError("no memory")

    monkeypatch.setattr(compact, "rewrite", fails)
    assert ingest(lake, None).spans == 4
    assert "no memory" in caplog.text and len(spans(lake)) == 32


def test_retention_by_age_removes_whole_executions_and_spares_unfinished_epochs(tmp_path: Path) -> None:
    now = time.time_ns()
    lake = Lake(tmp_path)
    for name, epoch, age in (("old.0", 0, 9), ("open.0", 1, 9), ("new.0", 0, 1)):
        store_rollout(tmp_path, name, epoch=epoch, received_ns=now - age * DAY_NS)
    store(tmp_path, [record(encode_request({}, [span("late", 9)]), "new.0", received_ns=now - 9 * DAY_NS)])
    store(tmp_path, [record(encode_request({}, [span("no rollout", 9)]), None, None, received_ns=now - 9 * DAY_NS)])
    lake.ingest()
    done = sealed(lake)
    done.finish("sequences", "key", {}, 0)
    lake.manifests.put_epoch(done)
    lake.manifests.put_epoch(EpochManifest(run="run", epoch=1, opened_offset=0))
    before = spans(lake)
    planned = retain(lake, older_than_days=7, dry_run=True)
    assert planned.rows == {("run", 0, "train"): 4, (None, None, None): 1}
    assert [(e.run, e.epoch) for e in planned.unfinished] == [("run", 1)]
    assert spans(lake) == before, "a dry run removes nothing"
    retain(lake, older_than_days=7)
    assert {row[0] for row in spans(lake)} == {"open.0", "new.0"} and len(spans(lake)) == 9
    with pytest.raises(LakeError, match=r"epoch 0 of run 'run': 4 of its spans were removed"):
        derived(lake, done)
    assert retain(lake, older_than_days=7).rows == {}


def test_retention_by_run_takes_its_spans_tables_and_manifests_and_nothing_else(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "a.0", "a.1", run="a")
    rollouts(tmp_path, "b.0", run="b")
    for run in ("a", "b"):
        epoch = sealed(lake, run)
        derived(lake, epoch)
        lake.manifests.put_epoch(epoch)
    policies = tmp_path / "policies" / "policy" / "v0001"
    policies.mkdir(parents=True)
    kept = lake.manifests.epochs("b")
    leaving = retain(lake, runs=["a"])
    assert leaving.rows == {("a", 0, "train"): 8} and leaving.bytes > 0
    assert {row[0] for row in spans(lake)} == {"b.0"}
    assert lake.manifests.epochs() == kept and policies.is_dir()
    compact.tidy(lake, 0)
    assert not list((lake.root / "derived" / "a").rglob("*.parquet"))
    assert list((lake.root / "derived" / "b").rglob("*.parquet"))
    # The name is free again: what is recorded under it now is another epoch.
    store_rollout(tmp_path, "a.0", run="a")
    opened = lake.manifests.spans().decoded_offset
    lake.ingest()
    require_spans(lake, sealed(lake, "a", opened=opened))


def test_a_run_that_somebody_works_on_is_not_removed(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "a.0", run="a")
    sealed(lake, "a")
    with lake.working_on("a"), pytest.raises(LakeError, match="works on run 'a'"):
        retain(lake, runs=["a"])
    with pytest.raises(LakeError, match="nothing is known of run 'c'"):
        retain(lake, runs=["c"])
    assert len(spans(lake)) == 4


def test_only_files_that_hold_what_goes_are_written_anew(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "a.0", run="a")
    rollouts(tmp_path, "b.0", "b.1", run="b")
    before = lake.manifests.spans().files
    sealed(lake, "a")
    retain(lake, runs=["a"])
    assert lake.manifests.spans().files == before[1:]


def test_rejected_spans_are_in_the_catalog_and_go_with_their_age(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "r.1")
    store(tmp_path, [record(b"\xff\xff\xff", "r.2", received_ns=7)])
    assert lake.ingest().rejected == 1
    lake.rebuild_catalog()
    row = json.loads(ask.answer(lake.root, "SELECT rollout_id, received_ns, spans FROM rejections", "json"))
    assert row == {"rollout_id": "r.2", "received_ns": 7, "spans": 1}
    assert "could not be decoded: 1 (table rejections)" in ask.overview(lake.root)
    leaving = retain(lake, older_than_days=1)
    assert [gone for _, gone, _ in leaving.rejected] == [1]
    assert json.loads(ask.answer(lake.root, "SELECT count(*) AS n FROM rejections", "json")) == {"n": 0}


def test_the_commands_say_what_they_did(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        group = [] if arguments[0] == "ingest" else ["lake"]
        done = CliRunner().invoke(main, [*group, *arguments, "--home", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.output

    store_rollout(tmp_path, "a.0", run="a")
    assert "4 spans decoded" in run("ingest")
    store_rollout(tmp_path, "a.1", run="a")
    run("ingest")
    assert "2 files" in run("compact") and "nothing to merge" in run("compact")
    assert "would remove 8 spans" in run("retain", "--run", "a", "--dry-run")
    assert "removed 8 spans" in run("retain", "--run", "a", "--grace", "0")
    assert spans(Lake(tmp_path)) == [] and not list((tmp_path / "lake" / "spans").glob("*.parquet"))


@pytest.mark.parametrize(
    "command", [["ingest"], ["ingest", "--follow"], ["lake", "compact"], ["lake", "retain", "--older-than", "1"]]
)
def test_a_folder_without_spool_and_lake_is_an_error_that_names_it(tmp_path: Path, command: list[str]) -> None:
    home = tmp_path / "typo"
    done = CliRunner().invoke(main, [*command, "--home", str(home)])
    assert done.exit_code == 1 and f"{home}: no " in done.output
    assert not home.exists()


def test_retention_without_a_lake_or_a_wish_says_what_to_give(tmp_path: Path) -> None:
    for arguments, message in (
        (["retain", "--run", "a"], "no lake there"),
        (["retain"], "--older-than DAYS"),
    ):
        done = CliRunner().invoke(main, ["lake", *arguments, "--home", str(tmp_path)])
        assert done.exit_code == 1 and message in done.output


def test_files_of_a_version_with_other_columns_are_read_and_compacted_to_todays(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "r.1", "r.2")
    manifest = lake.manifests.spans()
    old = lake.root / manifest.files[0].path
    table = pq.read_table(old).drop_columns(["kind"])
    parquet.write_table(old, table.append_column("of_old", [["x"] * 4]))
    manifest.files[0].columns, manifest.files[0].digest = "another", None
    lake.manifests.put_spans(manifest)
    with lake.connect() as con:
        assert con.execute("SELECT count(*), count(kind) FROM spans").fetchall() == [(8, 4)]
    assert retain(lake, older_than_days=1, dry_run=True).spans == 8
    compact.compact(lake, everything=True)
    (file,) = lake.manifests.spans().files
    assert pq.read_schema(lake.root / file.path).equals(schema.arrow_schema(schema.SPANS))
    assert len(spans(lake)) == 8


def test_a_span_file_that_is_not_what_was_written_is_named_and_set_aside(tmp_path: Path) -> None:
    lake = rollouts(tmp_path, "a", "b", "c")
    before = spans(lake)
    assert CliRunner().invoke(main, ["lake", "verify", "--home", str(tmp_path)]).exit_code == 0
    files = lake.manifests.spans().files
    for number in range(20):  # wherever the bit is
        path = lake.root / files[1].path
        sound = path.read_bytes()
        at = number * len(sound) // 20
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << number % 8]) + sound[at + 1 :])
        with pytest.raises(LakeError, match=rf"{path.name}: its bytes are not those.*lake repair"):
            compact.compact(lake, everything=True)
        path.write_bytes(sound)
    path.write_bytes(sound[:-1])
    (lake.root / files[2].path).unlink()
    with pytest.raises(LakeError, match=path.name):
        derive(Epoch(settings(tmp_path), EpochManifest(run="run", epoch=0, mode="train", opened_offset=0)), "key")
    told = CliRunner().invoke(main, ["lake", "verify", "--home", str(tmp_path)])
    assert told.exit_code == 1 and told.output.count("lake repair") == 2 and "No such file" in told.output
    told = CliRunner().invoke(main, ["lake", "repair", "--home", str(tmp_path)])
    assert told.exit_code == 0 and told.output.count("spans lost, what is left of it is in") == 2
    assert len(spans(lake)) == len(before) - files[1].rows - files[2].rows
    assert (lake.root / "damaged" / path.name).read_bytes() == sound[:-1]
    with catalog.connect(lake.root) as con:
        lost = con.execute("SELECT reason, sum(spans)::INTEGER FROM rejections GROUP BY ALL").fetchall()
    assert lost == [(DAMAGED, files[1].rows + files[2].rows)]
    assert "nothing to repair" in CliRunner().invoke(main, ["lake", "repair", "--home", str(tmp_path)]).output


@pytest.mark.parametrize("weights", [[1e9] * 3, [1.0, None, 2.0], [1e308] * 3])
def test_a_column_weight_of_a_derived_table_does_not_cut_its_row_groups(tmp_path: Path, weights: list[Any]) -> None:
    table = pa.table({"name": ["reward"] * 3, "weight": weights})
    assert parquet.write_stream(tmp_path / "rewards.parquet", table.schema, table.to_batches()) == 3
    written = pq.ParquetFile(tmp_path / "rewards.parquet")
    assert written.num_row_groups == 1 and written.read() == table
