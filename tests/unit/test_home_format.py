"""A home of another version: a newer one is refused before anything is touched, an older one is migrated once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lightning_core.config import GatewaySettings
from lightning_core.gateway.main import CannotStart, serve
from lightning_core.home_format import FORMAT, HomeError
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError
from lightning_core.policies.store import PolicyStore
from lightning_core.spool import spool
from lightning_core.spool.spool import SpoolError, SpoolWriter
from lightning_core.spool.spool_format import segments
from lightning_flows.flows.cli import main
from tests.spool_maker import store_rollout

NEWER = {"format": FORMAT + 1, "lightning_flows": "0.7.0"}


def state(home: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(home.rglob("*")) if path.is_file())
    return {str(path.relative_to(home)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def a_home(home: Path) -> Lake:
    store_rollout(home, "r.0")
    lake = Lake(home)
    lake.ingest()
    lake.manifests.put_epoch(EpochManifest(run="run", epoch=0, opened_offset=0, sealed_offset=lake.end()))
    lake.rebuild_catalog()
    store_rollout(home, "r.1")
    return lake


def test_a_newer_home_is_refused_by_the_version_that_reads_it_and_nothing_is_touched(tmp_path: Path) -> None:
    a_home(tmp_path)
    (tmp_path / "format").write_text(json.dumps(NEWER))
    before = state(tmp_path)
    refused = r"format 2, which lightning-flows 0\.7\.0 reads and .* does not"
    with pytest.raises(CannotStart, match=refused):
        serve(tmp_path, GatewaySettings(port=0))
    with pytest.raises(HomeError, match=refused):
        Lake(tmp_path)
    with pytest.raises(HomeError, match=refused):
        PolicyStore(tmp_path, "policy")
    for arguments in (
        ["sql", "FROM spans"],
        ["ingest"],
        ["lake", "compact"],
        ["lake", "repair"],
        ["why"],
        ["explain", "r.0"],
    ):
        done = command(*arguments, "--home", str(tmp_path))
        assert done.exit_code == 1 and "install lightning-flows>=0.7.0" in done.output + str(done.exception), arguments
    done = command("report", "run", "--home", str(tmp_path), "--into", str(tmp_path.parent / "page.html"))
    assert done.exit_code == 1 and "lightning-flows>=0.7.0" in done.output + str(done.exception)
    done = command("ui", "--home", str(tmp_path), "--port", "0")
    assert done.exit_code == 1 and "lightning-flows>=0.7.0" in done.output + str(done.exception)
    assert state(tmp_path) == before


def test_a_home_is_numbered_by_who_begins_it_and_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    a_home(tmp_path)
    assert json.loads((tmp_path / "format").read_text())["format"] == FORMAT
    (tmp_path / "format").write_text("LFh2\n")
    with pytest.raises(HomeError, match=r"format: not the format of a home .*remove it if no newer version"):
        Lake(tmp_path)
    (tmp_path / "format").unlink()  # the remedy
    assert Lake(tmp_path).manifests.spans().files
    assert json.loads((tmp_path / "format").read_text())["format"] == FORMAT


def test_an_older_home_is_migrated_once_with_a_copy_of_its_manifests(tmp_path: Path) -> None:
    lake = a_home(tmp_path)
    manifests, kept = lake.root / "manifests", lake.root / "manifests-of-format-0"
    spans, epoch = lake.manifests.spans(), lake.manifests.epoch("run", 0)
    assert epoch is not None
    # As lightning-flows wrote it before homes had a number.
    (tmp_path / "format").unlink()
    old = epoch.model_dump(mode="json") | {
        "stages": {"collect": {"key": "k", "output": {}, "seconds": 1, "finished_ns": 2}}
    }
    (manifests / "run" / "0000.json").write_text(json.dumps(old))
    (manifests / "spans.json").write_text(spans.model_dump_json())
    before = state(manifests)

    lake = Lake(tmp_path)
    assert state(kept).keys() == before.keys()
    assert all(content == before[name][0] for name, (content, _) in state(kept).items())
    assert lake.manifests.spans() == spans
    migrated = lake.manifests.epoch("run", 0)
    assert migrated is not None and list(migrated.stages) == ["rollouts"]
    after = state(tmp_path)
    Lake(tmp_path)
    assert state(tmp_path) == after
    assert lake.ingest().spans == 4

    # Killed before it gave the home its number; and one manifest is damaged, which migrating must not seal with a new digest.
    (tmp_path / "format").unlink()
    damaged = lake.manifests.spans_path.read_bytes().replace(b'"retries": 0', b'"retries": 9')
    lake.manifests.spans_path.write_bytes(damaged)
    lake = Lake(tmp_path)
    assert all(content == before[name][0] for name, (content, _) in state(kept).items())
    with pytest.raises(LakeError, match="its bytes are not those that were written"):
        lake.manifests.spans()


def test_a_spool_of_another_layout_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store_rollout(tmp_path, "r.0")
    [(_, path)] = segments(tmp_path / "spool")
    whole = path.read_bytes()
    for content in (b"LFs2" + b"another layout of a record" * 9, whole + b"LFs2" + b"another layout of a record" * 9):
        path.write_bytes(content)
        before = state(tmp_path / "spool")
        with pytest.raises(SpoolError, match=rf"{path.name}.*LFs2.*newer version"):
            SpoolWriter(tmp_path / "spool", 1 << 30)
        with pytest.raises(SpoolError, match="LFs2"):
            spool.durable_end(tmp_path / "spool")
        with pytest.raises(SpoolError, match="LFs2"):
            list(spool.read(tmp_path / "spool", 0))
        after = state(tmp_path / "spool")
        assert {name: after[name] for name in before if name != ".lock"} == {
            n: before[n] for n in before if n != ".lock"
        }
