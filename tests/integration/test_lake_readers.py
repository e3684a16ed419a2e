"""Readers see every span once while the lake is written, compacted and cleaned; who is killed at it breaks nothing."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_core.lake import compact
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from lightning_core.lake.retain import retain
from lightning_core.otlp.spans import encode_request
from tests.spool_maker import record, span, store, store_rollout

pytestmark = pytest.mark.slow

# Opens the lake anew again and again; a line of JSON each time, until the file `stop` is there.
_READER = """
import json, sys
from pathlib import Path
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake

home, how = Path(sys.argv[1]), sys.argv[2]
last = False
while not last:
    last = (home / "stop").exists()
    opened = catalog.connect(home / "lake") if how == "catalog" else Lake(home).connect()
    with opened as con:
        rows = con.execute(
            "SELECT count(*), count(DISTINCT (rollout_id, span_id)), count(*) FILTER (rollout_id LIKE 'new%') FROM spans"
        ).fetchall()
        if how == "catalog":
            con.execute("SELECT count(*) FROM rollouts JOIN calls USING (rollout_id)").fetchall()
    print(json.dumps(rows[0]), flush=True)
"""


def _reader(home: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _READER, str(home), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("how", ["catalog", pytest.param("connection", marks=pytest.mark.extra)])
def test_a_reader_loops_through_decoding_compaction_and_retention(tmp_path: Path, how: str) -> None:
    lake = Lake(tmp_path)
    for number in range(2):
        store_rollout(tmp_path, f"old.{number}", run="old")
    lake.ingest()
    lake.rebuild_catalog()
    reader = _reader(tmp_path, how)
    try:
        assert reader.stdout is not None
        assert json.loads(reader.stdout.readline()) == [8, 8, 0]
        for number in range(12):
            store_rollout(tmp_path, f"new.{number}", run="new")
            lake.ingest()
            lake.rebuild_catalog()
            if number % 3 == 2:
                compact.compact(lake, everything=True)
            if number == 6:
                retain(lake, runs=["old"])
            # Files go under the feet of whoever reads the catalog only after the grace, of a connection never.
            compact.tidy(lake, 600 if how == "catalog" else 0)
        (tmp_path / "stop").touch()
        out, errors = reader.communicate(timeout=120)
    finally:
        reader.kill()
    assert reader.returncode == 0, errors
    seen = [json.loads(line) for line in out.splitlines()]
    assert all(rows == distinct for rows, distinct, _ in seen), "a span was counted twice"
    new = [count for *_, count in seen]
    assert new == sorted(new) and new[-1] == 48 and all(count % 4 == 0 for count in new)
    assert seen[-1][0] == 48, "the removed run is gone"


def test_a_killed_decoding_or_compaction_is_ended_by_the_next(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for number in range(30):
        store_rollout(tmp_path, f"r.{number}")
        if number % 2:
            lake.ingest()
    code = "import sys; from lightning_flows.flows.cli import main; main(sys.argv[1:])"
    for turn, command in enumerate(["ingest", "compact"] * 4):
        store_rollout(tmp_path, f"k.{turn}")
        process = subprocess.Popen(
            [sys.executable, "-c", code, "lake", command, "--home", str(tmp_path)], stdout=subprocess.DEVNULL
        )
        time.sleep(0.4 + turn * 0.25)
        process.send_signal(signal.SIGKILL)
        process.wait()
    lake.ingest()
    compact.compact(lake, everything=True)
    with lake.connect() as con:
        counts = con.execute("SELECT count(*), count(DISTINCT (rollout_id, span_id)) FROM spans").fetchall()
    assert counts == [(38 * 4, 38 * 4)]


def test_a_disk_that_takes_no_more_is_an_error_and_the_next_try_goes_on(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for number in range(3):
        store(tmp_path, [record(encode_request({}, [span("x" * 200_000, number + 1, text=f"{number}" * 100_000)]))])
        if number < 2:
            lake.ingest()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for attempt in (lake.ingest, lambda: compact.compact(lake, everything=True)):
        files = sorted(p.name for p in (lake.root / "spans").iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(LakeError, match="too large"):
                attempt()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert sorted(p.name for p in (lake.root / "spans").iterdir()) == files
        attempt()
    with lake.connect() as con:
        assert con.execute("SELECT count(*) FROM spans").fetchall() == [(3,)]


def test_following_decodes_what_comes_until_ctrl_c(tmp_path: Path) -> None:
    store_rollout(tmp_path, "r.0")
    code = "from lightning_flows.flows.cli import main; main()"
    command = [sys.executable, "-c", code, "ingest", "--home", str(tmp_path), "--follow", "--every", "0.2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "decoding" in process.stdout.readline()
        assert "4 spans decoded" in process.stdout.readline()
        store_rollout(tmp_path, "r.1")
        assert "4 spans decoded" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "ended" in errors
