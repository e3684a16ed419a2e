"""A lake on object storage: published to a server of S3 in this process, and asked on a machine that has no lake."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from lightning_core.epoch.buckets import Job
from lightning_core.epoch.derive import derive, work_bucket
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import ask, compact, storage
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from lightning_flows.flows.cli import main
from tests.lake_maker import Attempt, derived, settings
from tests.spool_maker import store_rollout

pytestmark = pytest.mark.extra  # HTTP to a server in the same interpreter

moto = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
COUNT = "SELECT rollout_id, count(*) AS spans FROM spans GROUP BY ALL ORDER BY ALL"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_CONFIG_FILE")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty prefix; the keys are in the environment."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs("lakes", exist_ok=True)
    return f"s3://lakes/{tmp_path.name}"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake with a rollout in each of two files."""
    lake = Lake(tmp_path / "home")
    more(lake, "r.1", "r.2")
    return lake


def more(lake: Lake, *rollouts: str) -> None:
    for rollout in rollouts:
        store_rollout(lake.root.parent, rollout)
        lake.ingest()
    lake.rebuild_catalog()


def there(url: str) -> set[str]:
    return {path.partition("/")[2] for path in s3fs.S3FileSystem(use_listings_cache=False).find(url)}


def test_a_published_lake_answers_as_the_one_it_was_made_of(lake: Lake, bucket: str) -> None:
    assert storage.publish(lake, bucket).files == 2
    in_order = "FROM rollouts ORDER BY ALL"  # a view has none
    for question in (COUNT, in_order, "epochs", "late_and_rejected", "slowest_rollouts(p_epoch := 0)"):
        assert ask.answer(bucket, question, "csv") == ask.answer(lake.root, question, "csv")
    assert ask.overview(bucket).splitlines()[1].split() == ["spans", "8", "rows"]


def test_what_is_there_is_not_put_again(lake: Lake, bucket: str) -> None:
    storage.publish(lake, bucket)
    assert storage.publish(lake, bucket).files == 0
    more(lake, "r.3")
    assert storage.publish(lake, bucket).files == 1
    assert "r.3,4" in ask.answer(bucket, COUNT, "csv")


def test_the_manifest_of_a_run_that_was_removed_goes(lake: Lake, bucket: str) -> None:
    lake.open_epoch("one", 0, "train", {})
    gone = lake.open_epoch("other", 0, "train", {})
    storage.publish(lake, bucket)
    lake.manifests.drop_epoch(gone)
    storage.publish(lake, bucket)
    found = {path.partition("/manifests/")[2] for path in there(bucket) if "/manifests/" in path}
    assert found == {"spans.json", "one/0000.json"}


def test_a_reader_goes_on_with_the_publication_it_began_with(lake: Lake, bucket: str) -> None:
    storage.publish(lake, bucket)
    with storage.connect(bucket) as con:
        before = con.sql(COUNT).fetchall()
        compact.compact(lake, everything=True)
        assert storage.publish(lake, bucket).removed == 0
        assert con.sql(COUNT).fetchall() == before
    assert len([path for path in there(bucket) if "/spans/" in path]) == 3
    assert ask.answer(bucket, COUNT, "csv") == ask.answer(lake.root, COUNT, "csv")
    assert storage.publish(lake, bucket, grace_s=0).removed == 2
    assert len([path for path in there(bucket) if "/spans/" in path]) == 1
    assert ask.answer(bucket, COUNT, "csv") == ask.answer(lake.root, COUNT, "csv")


def test_a_publication_that_breaks_off_leaves_the_one_before(
    lake: Lake, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish(lake, bucket)
    before = ask.answer(bucket, COUNT, "csv")
    more(lake, "r.3")
    compact.compact(lake, everything=True)
    put, puts = s3fs.S3FileSystem._put_file, []

    async def break_off(self: object, local: str, remote: str, **more: object) -> None:
        puts.append(remote)
        if remote.endswith("catalog.duckdb"):
            raise ConnectionResetError("away")
        await put(self, local, remote, **more)

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_put_file", break_off)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(LakeError, match="away"):
            storage.publish(lake, bucket, grace_s=0)
    s3fs.S3FileSystem.clear_instance_cache()
    assert puts[-1].endswith("catalog.duckdb") and ask.answer(bucket, COUNT, "csv") == before
    storage.publish(lake, bucket, grace_s=0)
    assert "r.3,4" in ask.answer(bucket, COUNT, "csv")


def test_the_commands_publish_and_ask(lake: Lake, bucket: str) -> None:
    done = CliRunner().invoke(main, ["lake", "publish", "--home", str(lake.root.parent), "--to", bucket])
    assert done.exit_code == 0 and "2 files put there" in done.output
    asked = CliRunner().invoke(main, ["sql", COUNT, "--lake", bucket, "--format", "csv"])
    assert asked.output.splitlines()[1:] == ["r.1,4", "r.2,4"]
    done = CliRunner().invoke(main, ["explain", "r.1", "--lake", bucket])
    assert "has 4 spans, but its epoch is not derived yet" in done.output


@pytest.mark.parametrize(
    ("url", "taken", "message"),
    [
        ("s3://no-such-bucket/x", None, "is there such a bucket"),
        ("s3://lakes/x", "AWS_SECRET_ACCESS_KEY", "keys in the environment"),
        ("nothing://lakes/x", None, "nothing"),
    ],
)
def test_what_is_missing_is_an_error(
    lake: Lake, bucket: str, url: str, taken: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if taken is not None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv(taken)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(LakeError, match=message):
        storage.publish(lake, url)


def test_where_nothing_was_published_the_error_names_it(bucket: str) -> None:
    with pytest.raises(LakeError, match="no lake was published there"):
        ask.answer(bucket, COUNT)


def test_another_home_is_refused_until_it_takes_the_lake_over(lake: Lake, bucket: str, tmp_path: Path) -> None:
    lake.open_epoch("one", 0, "train", {})
    storage.publish(lake, bucket)
    other = Lake(tmp_path / "other")
    more(other, "x.1")
    with pytest.raises(LakeError, match="the lake of another home, which would be lost"):
        storage.publish(other, bucket)
    with pytest.raises(LakeError, match="has a lake already"):
        storage.fetch(other, bucket)
    heir = Lake(tmp_path / "heir")
    done = CliRunner().invoke(main, ["lake", "fetch", "--home", str(tmp_path / "heir"), "--from", bucket])
    assert done.exit_code == 0 and "2 files fetched" in done.output
    assert ask.answer(heir.root, COUNT, "csv") == ask.answer(lake.root, COUNT, "csv")
    assert heir.manifests.spans().files == lake.manifests.spans().files
    assert heir.manifests.epochs() == lake.manifests.epochs()
    more(lake, "r.3")
    with pytest.raises(LakeError, match="another home"):
        storage.publish(lake, bucket)
    assert "r.3" not in ask.answer(bucket, COUNT, "csv")


def test_of_two_homes_that_publish_at_once_one_is_refused(
    lake: Lake, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Lake(tmp_path / "other")
    more(other, "x.1")
    put = s3fs.S3FileSystem._pipe_file
    once = iter([True])

    async def while_the_other_does(self: object, path: str, data: bytes, **more: object) -> None:
        if next(once, False):
            await put(self, path, storage._Listing(home="another").model_dump_json().encode())
        await put(self, path, data, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", while_the_other_does)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(LakeError, match="another home publishes there since"):
        storage.publish(lake, bucket)
    assert {path.rpartition("/")[2] for path in there(bucket)} == {"published.json"}


def test_a_file_that_is_not_what_was_written_is_not_fetched(lake: Lake, bucket: str, tmp_path: Path) -> None:
    storage.publish(lake, bucket)
    store = s3fs.S3FileSystem(use_listings_cache=False)
    path = next(path for path in store.find(bucket) if path.endswith(".parquet"))
    content = bytearray(store.cat_file(path))
    content[len(content) // 2] ^= 1
    store.pipe_file(path, bytes(content))
    with pytest.raises(LakeError, match="its digest is not that of its manifest"):
        storage.fetch(Lake(tmp_path / "heir"), bucket)
    assert not Lake(tmp_path / "heir").manifests.spans().files


def test_a_worker_that_does_not_share_the_home_reads_the_spans_there(lake: Lake, bucket: str, tmp_path: Path) -> None:
    storage.publish(lake, bucket)
    worker = Lake(tmp_path / "worker")
    second = lake.manifests.spans().files[1]
    for span_range in ((second.start, None), (0, None)):
        storage.bring_spans(worker, bucket, span_range)
        with worker.connect(span_range) as there, lake.connect(span_range) as here:
            assert there.sql(COUNT).fetchall() == here.sql(COUNT).fetchall()
        assert len(list((worker.root / "spans").iterdir())) == (1 if span_range[0] else 2)
    storage.bring_spans(lake, "s3://no-such-bucket/x", (0, None))  # the home itself has its own


def test_an_epoch_derived_on_workers_with_the_spans_from_there_comes_to_the_same_bytes(
    bucket: str, tmp_path: Path
) -> None:
    rows = []
    for number in range(8):
        attempt = Attempt(f"r.{number}", group=f"g.{number % 2}")
        attempt.root()
        attempt.call([1, 2], [3 + number, 4], parent=attempt.agent("writer"))
        attempt.reward(float(number % 3))
        rows += [row | {"record_offset": 100 * number + place} for place, row in enumerate(attempt.rows)]
    lake, epoch = derived(tmp_path / "home", rows, spans_a_bucket=8)
    (lake.spool).mkdir()
    storage.publish(lake, bucket)
    kept = {"storage": bucket}
    here = Epoch(settings(lake.root.parent, lake=kept), epoch.model_copy(update={"tables": {}}))
    worker = Epoch(settings(tmp_path / "worker", lake=kept), here.manifest)
    before = {name: table.digest for name, table in epoch.tables.items()}

    def elsewhere(jobs: Iterator[Job]) -> Iterator[dict[str, pa.Table]]:
        return (work_bucket(worker, job) for job in jobs)

    derive(here, "key", spans_a_bucket=8, elsewhere=elsewhere)
    assert (worker.lake.root / "spans" / "0.parquet").exists()
    assert {name: table.digest for name, table in here.manifest.tables.items()} == before
