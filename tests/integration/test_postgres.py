"""Prefect's record in PostgreSQL, by the address alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = """
from pathlib import Path
import sys
from lightning_flows.flows.prefect_api import prefect_api

with prefect_api(Path(sys.argv[1])):
    from prefect import flow

    @flow(name="probe", persist_result=False)
    def probe() -> None:
        return None

    probe()
"""


def _binary(name: str) -> str | None:
    found = shutil.which(name)
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return found or (str(places[-1]) if places else None)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """host:port of a PostgreSQL of its own. It refuses to run as root, so `nobody` runs it there."""
    initdb, postgres = _binary("initdb"), _binary("postgres")
    if initdb is None or postgres is None or shutil.which("psql") is None:
        pytest.skip("no PostgreSQL here (initdb, postgres, psql): install the system's package")
    folder = tmp_path / "data"
    folder.mkdir()
    user = "nobody" if os.getuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
        for above in (tmp_path, *list(tmp_path.parents)[:2]):
            above.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    subprocess.run(
        [initdb, "-D", str(folder), "-U", "lightning", "-A", "trust"], user=user, check=True, capture_output=True
    )
    listen = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    server = subprocess.Popen(
        [postgres, "-D", str(folder), "-p", str(port), *listen],
        user=user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def ask(database: str, name: str, query: str) -> str:
    host, _, port = database.partition(":")
    command = ["psql", "-h", host, "-p", port, "-U", "lightning", "-d", name, "-At", "-c", query]
    for _ in range(50):
        done = subprocess.run(command, capture_output=True, text=True)
        if "refused" not in done.stderr and "starting up" not in done.stderr:
            break
        time.sleep(0.2)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.extra
def test_flow_runs_are_recorded_in_postgresql(tmp_path: Path, database: str) -> None:
    ask(database, "postgres", "CREATE DATABASE prefect")
    url = f"postgresql+asyncpg://lightning@{database}/prefect"
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "home")],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_DATABASE_CONNECTION_URL": url},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = ask(
        database, "prefect", "SELECT state_type FROM flow_run JOIN flow ON flow.id = flow_id WHERE flow.name = 'probe'"
    )
    assert runs == "COMPLETED"
