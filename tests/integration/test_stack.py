"""The local stack: parts that begin in order, are started again when they die, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import psutil
import pytest

from lightning_core.config import GatewaySettings, SettingsError
from lightning_core.epoch.services import claim_services
from lightning_core.gateway.handle import GatewayHandle
from lightning_flows.flows import stack
from lightning_flows.flows.stack import Part, Plan, Ports
from lightning_flows.flows.stack_commands import _wait_until_ready
from tests.gateway_rig import wait_for
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
until = partial(wait_for, seconds=60)


def a_part(home: Path, name: str, after: str | None = None) -> Part:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(home)]
    return Part(name=name, command=command, ready=f"http://127.0.0.1:{port}/", shown=str(port), after=after)


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[Plan]:
    made = Plan(home=tmp_path, parts=[a_part(tmp_path, "second", after="first"), a_part(tmp_path, "first")])
    stack.start(made)
    yield made
    stack.stop(tmp_path)


def pid_of(plan: Plan, name: str) -> int:
    state = stack.state_of(plan.home)
    return state.parts[name].pid if state is not None and name in state.parts else 0


def test_a_part_that_died_is_started_again_and_the_end_leaves_nothing(plan: Plan) -> None:
    until(lambda: all(stack.is_ready(part) for part in plan.parts))
    log = (plan.folder / "supervisor.log").read_text()
    assert log.index("first runs") < log.index("second runs"), "a part waits for the one it needs"
    before = pid_of(plan, "second")
    os.kill(before, signal.SIGKILL)
    until(lambda: pid_of(plan, "second") not in (0, before) and stack.is_ready(plan.parts[0]))
    pids = [pid_of(plan, "first"), pid_of(plan, "second")]
    assert stack.stop(plan.home)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not stack.stop(plan.home), "there is nothing left to end"


def test_a_supervisor_that_was_killed_takes_its_parts_along(plan: Plan) -> None:
    until(lambda: all(stack.is_ready(part) for part in plan.parts))
    state = stack.state_of(plan.home)
    assert state is not None
    os.kill(state.supervisor.pid, signal.SIGKILL)
    until(lambda: not any(stack.is_ready(part) for part in plan.parts))


PART = """
import os, signal, subprocess, sys
os.chdir(sys.argv[1])
flow = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (open('stopped', 'w'), sys.exit())); open('began', 'w'); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", flow])
signal.signal(signal.SIGTERM, lambda *_: (child.kill(), sys.exit()))  # as Prefect's worker does
child.wait()
signal.pause()
"""


def test_a_part_is_ended_after_the_processes_that_it_would_kill(tmp_path: Path) -> None:
    """The flows of a worker, which stop what they run for homes of their own."""
    command = [sys.executable, "-c", PART, str(tmp_path)]
    stack.start(Plan(home=tmp_path, parts=[Part(name="worker", command=command, ready="", shown="")]))
    try:
        until((tmp_path / "began").exists)
    finally:
        stack.stop(tmp_path)
    assert (tmp_path / "stopped").exists()


def test_a_port_that_is_taken_is_an_error_that_names_the_option(plan: Plan, tmp_path: Path) -> None:
    until(lambda: stack.is_ready(plan.parts[1]))
    taken = int(plan.parts[1].shown)
    with pytest.raises(SettingsError, match=f"port {taken} for mlflow is taken.*--mlflow-port"):
        stack.make_plan(tmp_path, GatewaySettings(), Ports(prefect=0, gateway=0, worker=0, page=0, mlflow=taken))


def test_a_stack_that_ended_is_not_said_to_be_slow(tmp_path: Path) -> None:
    made = Plan(home=tmp_path, parts=[a_part(tmp_path, "first")])
    with pytest.raises(click.ClickException, match=r"the stack has ended; see .*/stack/supervisor\.log"):
        _wait_until_ready(made)


def test_a_stack_beside_a_flow_is_refused_in_words(tmp_path: Path) -> None:
    assert claim_services(tmp_path), "as a flow does"
    with pytest.raises(SettingsError, match=r"a flow is at work in .*; wait for it") as refused:
        stack.start(Plan(home=tmp_path, parts=[]))
    assert "Traceback" not in str(refused.value)


def test_two_parts_on_one_port_are_an_error_that_names_the_option(tmp_path: Path) -> None:
    one = free_port()
    with pytest.raises(SettingsError, match=f"port {one} for page is taken.*--page-port"):
        stack.make_plan(tmp_path, GatewaySettings(), Ports(prefect=0, gateway=one, worker=0, page=one, mlflow=0))


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture
def posted() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's address, and what came to it."""
    found: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", found
    server.shutdown()


@pytest.mark.extra
@pytest.mark.timeout(900)
def test_deployments_run_on_the_real_stack_and_a_failure_is_told_to_a_webhook(
    tmp_path: Path, posted: tuple[str, list[dict[str, Any]]]
) -> None:
    webhook, alerts = posted
    home = ["--home", str(tmp_path)]
    free = [f"--{part}-port=0" for part in ("prefect", "gateway", "mlflow", "worker", "page")]
    up = command("lightning_flows.flows.cli", "up", *home, *free, "--alert-webhook", webhook)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        plan = Plan.model_validate_json((tmp_path / "stack/plan.json").read_bytes())
        parts = {part.name: part for part in plan.parts}
        with urllib.request.urlopen(parts["mlflow"].shown) as page:
            assert b"MLflow" in page.read()
        api = {"PREFECT_API_URL": parts["prefect"].environment["PREFECT_API_URL"]}
        run = ("prefect", "deployment", "run", "--watch")
        done = command(*run, "ingest/local", "--param", f"home={tmp_path}", **api)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "lake/catalog.duckdb").is_file()
        assert GatewayHandle.find(tmp_path) is not None, "the stack's server is left running by flows"

        settings = {"home": str(tmp_path), "agent": {"command": "true"}, "tasks": {"train": "nowhere.jsonl"}}
        failed = command(*run, "roll-out/local", "--param", f"settings={json.dumps(settings)}", **api)
        assert failed.returncode != 0
        until(lambda: any("nowhere.jsonl" in alert["text"] for alert in alerts))

        wrong = command(*run, "train-epoch/local", "--param", "epoch=soon", **api)
        assert wrong.returncode != 0
        assert "epoch" in wrong.stdout + wrong.stderr

        command("prefect", "work-pool", "create", "containers", "--type", "docker", **api)
        variables = json.dumps({"image": "lightning-flows", "volumes": [f"{tmp_path}:/srv/lightning/var"]})
        moved = ("prefect", "--no-prompt", "deploy", "-n", "train/local", "--pool", "containers", "-jv", variables)
        deployed = command(*moved, **api)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        with urllib.request.urlopen(f"{api['PREFECT_API_URL']}/deployments/name/train/local") as answer:
            found = json.load(answer)
        assert (found["work_pool_name"], found["job_variables"]) == ("containers", json.loads(variables))

        command("prefect", "work-pool", "pause", "local", **api)  # as where no worker runs
        command("prefect", "deployment", "run", "ingest/local", **api)
        until(lambda: any("does a worker of its pool run" in alert["subject"] for alert in alerts))
    finally:
        down = command("lightning_flows.flows.cli", "down", *home)
    assert down.returncode == 0, down.stderr
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert left == []
