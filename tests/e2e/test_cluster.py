"""An epoch on a local cluster of two workers, Ray's and Dask's, of which one is killed while it rolls out."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e import kills
from tests.e2e.kills import Epoch
from tests.e2e.test_two_epochs import HERE, write_settings
from tests.ports import free_port
from tests.spool_maker import store_rollout

pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]


def worker(epoch: Epoch, pid: int) -> list[int]:
    """A process of the cluster in which attempts run: one that has the agents' pool for a child."""
    pools = [
        p for p in psutil.Process(pid).children(recursive=True) if "lightning_core.process.fork_server" in p.cmdline()
    ]
    parents = {p.ppid() for p in pools} - {pid}
    assert parents, "rollouts run outside of the flow's process"
    return [min(parents)]


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_a_worker_killed_in_mid_epoch_costs_no_finished_rollout(
    tmp_path: Path, with_prefect: dict[str, str], engine: str
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
    epoch = Epoch(settings, tmp_path / "home", with_prefect, program="tests.e2e.without_vllm")
    assert epoch.end_at(kills.rolling_out, worker) == 0, epoch.log.read_text()[-5000:]
    assert "rollouts are begun again" in epoch.log.read_text()
    assert epoch.rollouts_that_ran_twice() == []
    assert epoch.manifest is not None and epoch.manifest.stages["rollouts"].output["unfinished"] == 0
    triplets, different = kills.triplets(epoch)
    assert triplets == different > 0
    assert "record" in epoch.manifest.stages
    assert kills.mentioning(epoch.home) == []


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_spans_and_derived_tables_are_the_same_bytes_on_a_cluster(
    tmp_path: Path, with_prefect: dict[str, str], engine: str
) -> None:
    pytest.importorskip(f"prefect_{engine}")
    digests, said = [], ""
    for where in ("threads", engine):
        home = tmp_path / where
        for number in range(12):
            store_rollout(home, f"r.{number}", reward=float(number % 2))
        command = [sys.executable, "-m", "tests.e2e.on_a_cluster", where, str(home)]
        debug = with_prefect | {"PREFECT_LOGGING_LEVEL": "DEBUG"}
        done = subprocess.run(command, cwd=kills.ROOT, env=debug, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
        digests.append(json.loads((home / "digests.json").read_text()))
        said = done.stderr
    assert digests[0] == digests[1] and "sequences" in digests[0]
    assert said.count("Creating a") == 2, "a cluster each for decoding and for SQL"
    assert "triplets, bucket 2 of" in said and "sequences, bucket 2 of" in said


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_an_epoch_on_a_cluster_that_runs_already_leaves_it_running(
    tmp_path: Path, with_prefect: dict[str, str], engine: str
) -> None:
    pytest.importorskip(f"prefect_{engine}")
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = with_prefect | secret | {"RAY_USAGE_STATS_ENABLED": "0"}
    start = ray_cluster if engine == "ray" else dask_cluster
    with start(tmp_path, environment) as (address, is_there):
        settings = write_settings(
            tmp_path,
            epochs=1,
            evaluation={"every": 0},
            rollout={"tasks_per_epoch": 4, "group_size": 4, "concurrency": 4, "shards": 4},
            cluster={"engine": engine, "address": address},
        )
        epoch = Epoch(settings, tmp_path / "home", environment, program="tests.e2e.without_vllm")
        epoch.finish()
        assert is_there()
    assert epoch.manifest is not None and epoch.manifest.stages["rollouts"].output["statuses"] == {"ok": 16}
    triplets, different = kills.triplets(epoch)
    assert triplets == different > 0
    said = "".join(log.read_text() for log in tmp_path.glob("*.log"))  # Ray's workers to the flow, Dask's by themselves
    assert "shard 4/4" in said


@contextlib.contextmanager
def ray_cluster(folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, Callable[[], bool]]]:
    """A head on this machine, as `ray start` makes it, and the address for those who are not on it."""
    ray = str(Path(sys.executable).with_name("ray"))
    gcs, client = free_port(), free_port()
    command = [ray, "start", "--head", "--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--block"]
    command += ["--port", str(gcs), "--ray-client-server-port", str(client), "--include-dashboard", "false"]
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short,  # as a socket's path has to be
        _running([*command, "--temp-dir", short], folder / "ray.log", environment, "Ray runtime started"),
    ):
        status = [ray, "status", "--address", f"127.0.0.1:{gcs}"]
        yield (
            f"ray://127.0.0.1:{client}",
            lambda: subprocess.run(status, env=environment, capture_output=True).returncode == 0,
        )


@contextlib.contextmanager
def dask_cluster(folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, Callable[[], bool]]]:
    dask, address = str(Path(sys.executable).with_name("dask")), f"tcp://127.0.0.1:{free_port()}"
    scheduler = [dask, "scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]
    worker = [dask, "worker", address, "--host", "127.0.0.1", "--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
    with (
        _running(scheduler, folder / "scheduler.log", environment, "Scheduler at:") as process,
        _running(worker, folder / "worker.log", environment, "Registered to:"),
    ):
        yield address, lambda: process.poll() is None


@contextlib.contextmanager
def _running(
    command: list[str], log: Path, environment: dict[str, str], ready: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the cluster, from when it has said that it is ready, to its end with all that it started."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=kills.ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while ready not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield process
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for child in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
