"""An epoch on a local cluster of two workers, Ray's and Dask's, of which one is killed while it rolls out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e import kills
from tests.e2e.kills import Epoch
from tests.e2e.test_kills import environment as environment  # the fixture
from tests.e2e.test_two_epochs import HERE, write_settings
from tests.spool_maker import store_rollout

pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]


def worker(epoch: Epoch, pid: int) -> list[int]:
    """A process of the cluster in which attempts run: one that has the agents' pool for a child."""
    pools = [p for p in psutil.Process(pid).children(recursive=True) if "lightning_core.agents.zygote" in p.cmdline()]
    parents = {p.ppid() for p in pools} - {pid}
    assert parents, "rollouts run outside of the flow's process"
    return [min(parents)]


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_a_worker_killed_in_mid_epoch_costs_no_finished_rollout(
    tmp_path: Path, environment: dict[str, str], engine: str
) -> None:
    pytest.importorskip(f"prefect_{engine}")
    settings = write_settings(
        tmp_path,
        epochs=1,
        evaluation={"every": 0},
        agent={
            "callable": f"{HERE / 'letter_agent.py'}:run",
            "timeout_s": 60,
            "environment": {"LETTER_PAUSE": "1"},
        },
        rollout={"tasks_per_epoch": 4, "group_size": 6, "concurrency": 4, "shards": 4},
        cluster={"engine": engine, "workers": 2},
    )
    epoch = Epoch(settings, tmp_path / "home", environment, program="tests.e2e.without_vllm")
    assert epoch.end_at(kills.rolling_out, worker) == 0, epoch.log.read_text()[-5000:]
    assert "rollouts are begun again" in epoch.log.read_text()
    assert epoch.rollouts_that_ran_twice() == []
    assert epoch.manifest is not None and epoch.manifest.stages["collect"].output["unfinished"] == 0
    triplets, different = kills.triplets(epoch)
    assert triplets == different > 0
    assert "record" in epoch.manifest.stages
    assert kills.mentioning(epoch.home) == []


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_spans_and_derived_tables_are_the_same_bytes_on_a_cluster(
    tmp_path: Path, environment: dict[str, str], engine: str
) -> None:
    pytest.importorskip(f"prefect_{engine}")
    digests, said = [], ""
    for where in ("threads", engine):
        home = tmp_path / where
        for number in range(12):
            store_rollout(home, f"r.{number}", reward=float(number % 2))
        command = [sys.executable, "-m", "tests.e2e.on_a_cluster", where, str(home)]
        done = subprocess.run(command, cwd=kills.ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
        digests.append(json.loads((home / "digests.json").read_text()))
        said = done.stderr
    assert digests[0] == digests[1] and "sequences" in digests[0]
    assert said.count("Creating a") == 2, "a cluster each for decoding and for SQL"
    assert "triplets, bucket 2 of" in said and "sequences, bucket 2 of" in said
