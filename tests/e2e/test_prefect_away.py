"""A Prefect server that is killed in mid-epoch and comes back: the epoch goes on, and Prefect has its record."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_core.policies.store import PolicyStore
from lightning_flows.flows.prefect_api import answers, server_command
from tests.e2e import kills
from tests.e2e.test_kills import new_epoch
from tests.gateway_rig import wait_for
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(900)]

AWAY_S = 8.0


@contextlib.contextmanager
def api_server(home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Prefect's server on this port, like one that a user started; ended after."""
    home.mkdir(exist_ok=True)
    environment = os.environ | {"PREFECT_HOME": str(home)}
    with (home / "server.log").open("ab") as log:
        command = server_command("--host", "127.0.0.1", "--port", str(port))
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield server
    finally:
        server.terminate()
        server.wait(30)


def flow_runs() -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{os.environ['PREFECT_API_URL']}/flow_runs/filter", b"{}", {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return list(json.load(reply))


def test_an_epoch_outlives_a_prefect_server_that_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, port = tmp_path / "prefect", free_port()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    with api_server(home, port) as server:
        wait_for(lambda: answers(f"{os.environ['PREFECT_API_URL']}/health"), 120)
        epoch = new_epoch(tmp_path, dict(os.environ), program="tests.e2e.without_vllm")
        with epoch.started() as process:
            while not kills.rolling_out(epoch):
                assert process.poll() is None, epoch.log.read_text()[-3000:]
                time.sleep(0.05)
            server.kill()
            server.wait()
            time.sleep(AWAY_S)
            with api_server(home, port):
                code = process.wait(kills.WAIT_S)
                assert code == 0, epoch.log.read_text()[-5000:]
                assert [run["state_type"] for run in flow_runs()] == ["COMPLETED"]
    assert epoch.rollouts_that_ran_twice() == []
    assert PolicyStore(epoch.home, "policy").versions() == ["v0000", "v0001"]
