"""A Prefect server that is killed in mid-epoch and comes back: the epoch goes on, and Prefect has its record."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_core.policies.store import PolicyStore
from lightning_flows.flows.prefect_api import prefect_api
from tests.e2e import kills
from tests.e2e.test_kills import new_epoch

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(900)]

AWAY_S = 8.0


def api_server() -> psutil.Process:
    """Prefect's server, which this process started."""
    [found] = [p for p in psutil.Process().children() if "prefect.server.api.server:create_app" in p.cmdline()]
    return found


def flow_runs() -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{os.environ['PREFECT_API_URL']}/flow_runs/filter", b"{}", {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return list(json.load(reply))


def test_an_epoch_outlives_a_prefect_server_that_is_killed_and_started_again(
    tmp_path: Path,
) -> None:
    with prefect_api(tmp_path / "prefect"):
        epoch = new_epoch(tmp_path, dict(os.environ), program="tests.e2e.without_vllm")
        server = api_server()
        command, environment = server.cmdline(), server.environ()
        with epoch.started() as process:
            while not kills.rolling_out(epoch):
                assert process.poll() is None, epoch.log.read_text()[-3000:]
                time.sleep(0.05)
            server.kill()
            server.wait()
            time.sleep(AWAY_S)
            with (tmp_path / "again.log").open("wb") as log:
                again = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                code = process.wait(kills.WAIT_S)
                assert code == 0, epoch.log.read_text()[-5000:]
                assert [run["state_type"] for run in flow_runs()] == ["COMPLETED"]
            finally:
                again.terminate()
                again.wait(30)
    assert epoch.rollouts_that_ran_twice() == []
    assert PolicyStore(epoch.home, "policy").versions() == ["v0000", "v0001"]
