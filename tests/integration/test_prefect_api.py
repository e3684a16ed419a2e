"""The Prefect server that a command starts for itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROBE = """
import http.client, logging, os, socket, sys, time
from pathlib import Path
from urllib.parse import urlsplit
from lightning_flows.flows.prefect_api import prefect_api

class TakesItsPort(logging.Handler):
    def emit(self, record):
        if record.getMessage() == "starting Prefect's server":
            port = urlsplit(os.environ["PREFECT_API_URL"]).port
            try:
                taken.bind(("127.0.0.1", port))
                taken.listen()
                print("its port was free while it started")
            except OSError:
                print("nobody else gets its port")

taken = socket.socket()
logging.basicConfig(level=logging.INFO, handlers=[TakesItsPort()])
with prefect_api(Path(sys.argv[1])):
    from prefect import flow, get_client, task
    from prefect.context import TaskRunContext
    from lightning_flows.tasks.api import limited

    @task(persist_result=False)
    def tagged():
        return sorted(TaskRunContext.get().task_run.tags)

    @flow(name="probe", persist_result=False)
    def probe():
        with limited("trainer"):
            print("without a limit:", *tagged())
        with get_client(sync_client=True) as client:
            client.create_concurrency_limit("trainer", 1)
        with limited("trainer"):
            print("with a limit:", *tagged())

    probe()
    connection = http.client.HTTPConnection(urlsplit(os.environ["PREFECT_API_URL"]).netloc)
    for idle_s in (0, 7):  # uvicorn's default is 5 s
        time.sleep(idle_s)
        connection.request("GET", "/api/health")
        print(connection.getresponse().read().decode(), "after", idle_s)
        connection.auto_open = 0  # it is this connection or none
"""


def test_its_port_is_its_own_it_keeps_idle_connections_and_limits_only_what_has_a_limit(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-c", PROBE, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "nobody else gets its port", "without a limit:", "with a limit: trainer", "true after 0", "true after 7"
    ]  # fmt: skip


SEVERAL = """
import asyncio, json, os, sys
from pathlib import Path
from lightning_flows.flows.prefect_api import answers, prefect_api

def probe(number):
    with prefect_api(Path(sys.argv[1])):
        from prefect import flow, get_client
        url = os.environ["PREFECT_API_URL"]
        flow(name=f"probe-{number}", persist_result=False)(lambda: barrier.wait(60) if number else None)()
        with get_client(sync_client=True) as client:
            names = sorted(each.name for each in client.read_flows())
    return url, names, answers(f"{url}/health")

async def main():
    return [probe(0), *await asyncio.gather(*(asyncio.to_thread(probe, number) for number in (1, 2)))]

from threading import Barrier
barrier = Barrier(2)
print(json.dumps(asyncio.run(main())))
"""


def test_threads_share_a_server_and_a_process_may_have_one_after_another(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", SEVERAL, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    first, *both = json.loads(ran.stdout.splitlines()[-1])
    assert first[1:] == [["probe-0"], False], "it ends with its context"
    assert both[0][0] == both[1][0]
    assert sorted(len(names) for _, names, _ in both)[-1] == 3
    assert [there for *_, there in both].count(False) >= 1, "it ends with the last of its threads"
    assert "never awaited" not in ran.stderr
