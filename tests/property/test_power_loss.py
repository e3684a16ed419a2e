"""The power may go at any call of whole epochs: what was acknowledged is there, and nothing half is served.

`python -m tests.property.test_power_loss 2000` tries so many cuts.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.files import make_folder
from lightning_core.gateway.main import _decoded_offset
from lightning_core.home_format import require_readable
from lightning_core.lake import compact
from lightning_core.lake.lake import Lake
from lightning_core.lake.verify import unsound
from lightning_core.otlp.spans import encode_request
from lightning_core.policies.store import PolicyStore
from lightning_core.spool import spool
from lightning_core.spool.spool import SpoolWriter
from tests import examples
from tests.lake_maker import settings
from tests.policy_files import lineage, output, store_with_base
from tests.power import Disk, recorded
from tests.spool_maker import record, rollout_spans

pytestmark = pytest.mark.slow

_EPOCHS = 2
_ROLLOUTS = 3


def epochs(home: Path, disk: Disk) -> None:
    """Two epochs, as gateway and flow run them, with what they acknowledge: ("stored", rollout), ("trained", version)."""
    make_folder(home)
    store = store_with_base(home)
    store.set_current("v0000")
    disk.say(("trained", "v0000"))
    lake, writer = Lake(home), SpoolWriter(home / "spool", 1 << 30, segment_bytes=1000)  # about one record

    async def send(rollout: str, **scope: Any) -> None:
        await writer.append(record(encode_request({}, rollout_spans(rollout, **scope)), rollout))
        disk.say(("stored", rollout))

    async def reject() -> None:
        await writer.append(record(b"\xff"))

    for number in range(_EPOCHS):
        epoch = Epoch(settings(home), lake.open_epoch("run", number, "train", {"policy": f"v{number:04d}"}))
        for rollout in range(_ROLLOUTS):
            name = f"r.{number}.{rollout}"
            asyncio.run(send(name, epoch=number, reward=float(rollout % 2)))
            epoch.manifest.planned.append(name)
            if rollout % 2:
                lake.ingest()
        asyncio.run(reject())
        epoch.manifest.sealed_offset = writer.end()
        epoch.save()
        lake.ingest(until=writer.end())
        derive(epoch, "key")
        epoch.manifest.finish("sequences", "key", {}, 0.1)
        epoch.save()
        made = lineage(number, parent=f"v{number:04d}")
        version = store.publish(output(home, f"out-{number}", number + 1.0), made, synced=number % 2 == 0)
        store.set_current(version)
        store.sync(version)
        epoch.manifest.finish("train policy", "key", {"version": version}, 0.1)
        epoch.save()
        disk.say(("trained", version))
        compact.compact(lake, everything=True)
        compact.tidy(lake, grace_s=0)
    asyncio.run(send("r.last", epoch=_EPOCHS))
    writer.close()


def check(home: Path, said: list[Any], whole: bool) -> None:
    """Open a home after a cut, and look whether all is there."""
    if not home.exists():
        assert said == []
        return
    require_readable(home)
    lake = Lake(home)
    writer = SpoolWriter(home / "spool", 1 << 30, begin=_decoded_offset(home))
    assert writer.damaged_bytes == 0
    manifest = lake.manifests.spans()
    assert [*unsound(lake)] == []
    stored: list[tuple[str, int, int]] = []
    for file in manifest.files:
        found = pq.read_table(lake.root / file.path, columns=["rollout_id", "record_offset", "record_index"])
        stored += zip(*(column.to_pylist() for column in found.columns), strict=True)
    waiting = [row for _, _, row in spool.read(home / "spool", manifest.decoded_offset)]
    assert len({(offset, index) for _, offset, index in stored}) == len(stored)
    held = [name for name, *_ in stored] + [row.rollout_id for row in waiting for _ in range(4) if row.body != b"\xff"]
    for what, name in said:
        if what == "stored":
            assert held.count(name) == 4, name
    store = PolicyStore(home, "policy")
    trained = [name for what, name in said if what == "trained"]
    assert set(trained) <= set(store.versions())
    done = {version for epoch in lake.manifests.epochs() for version in epoch.ended_with.values()}
    for version in store.versions():
        store.manifest(version)
        if version in done | {"v0000"}:
            store.verify(version)
        else:  # published, and maybe not on the disk: trained again, it is whole
            number = int(version[1:])
            again = output(home, f"again-{number}", float(number))
            assert store.publish(again, lineage(number - 1, parent=f"v{number - 1:04d}")) == version
            store.verify(version)
    if trained:
        assert store.current() in store.versions() and str(store.current()) >= max(trained)
    for epoch in lake.manifests.epochs():
        assert set(epoch.ended_with.values()) <= set(store.versions())
    if whole:
        asyncio.run(_append(writer))
        lake.ingest()
        with lake.connect() as con:
            counts = dict(con.execute("SELECT rollout_id, count(*) FROM spans GROUP BY ALL").fetchall())
        assert counts.pop("r.after") == 4 and set(counts.values()) <= {4}
        assert {name for what, name in said if what == "stored"} <= set(counts)
    writer.close()


async def _append(writer: SpoolWriter) -> None:
    await writer.append(record(encode_request({}, rollout_spans("r.after")), "r.after"))


def try_cuts(cuts: int, seed: int = 7) -> int:
    """Try so many cuts; returns how many calls there were to cut at."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        home = Path(folder) / "disk" / "home"
        home.parent.mkdir()
        with recorded(home.parent) as disk:
            epochs(home, disk)
        chance, bad = random.Random(seed), list[Exception]()
        for number in range(cuts):
            cut = 1 + (number * disk.calls) // cuts
            left = Path(folder) / "left"
            said = disk.after(cut, left, random.Random(chance.random()))
            try:
                check(left / "home", said, whole=number % 20 == 0)
            except Exception as error:  # noqa: BLE001 - all cuts are tried, then it is raised
                error.add_note(f"cut {number} of {cuts}, before call {cut} of {disk.calls}")
                bad.append(error)
            shutil.rmtree(left)
    if bad:
        raise ExceptionGroup(f"{len(bad)} of {cuts} cuts", bad[:5])
    return disk.calls


def test_a_cut_anywhere_loses_nothing_acknowledged_and_serves_nothing_half() -> None:
    assert try_cuts(cuts=20 * examples.times) > 300


if __name__ == "__main__":
    print(try_cuts(int(sys.argv[1]), *map(int, sys.argv[2:])), "calls")
