"""The local stack: Prefect's server and UI, a worker, the gateway, MLflow's UI and the page, watched by one process.

`lightning-flows up` writes what is to run into `home/stack/plan.json` and starts this module as the supervisor. It
starts the parts, starts those that died again, and writes `state.json` (pids) on every change. A part's log is
`home/stack/<part>.log`. Everything listens on 127.0.0.1. The supervisor owns the home's services, so a flow uses the
gateway that it finds and leaves it running.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from pydantic import BaseModel

from lightning_core.config import GatewaySettings, SettingsError
from lightning_core.epoch.services import claim_services, stop_orphans
from lightning_core.files import write_atomic
from lightning_core.gateway.handle import gateway_command
from lightning_core.gateway.service_files import PRIVATE, made_once
from lightning_core.process.linux import created, end_group, group_members, is_running, kill
from lightning_core.process.spawn import Process, StartError
from lightning_core.process.supervise import Supervised
from lightning_flows.flows import prefect_api

WORK_POOL = "local"
logger = logging.getLogger(__name__)

START_S = 240.0
_POLL_S, _GRACE_S = 0.2, 20.0


class Part(BaseModel):
    """One process of the stack."""

    name: str
    command: list[str]
    environment: dict[str, str] = {}
    ready: str  # answers 200 when the part works
    shown: str  # what a person opens, or uses
    after: str | None = None  # the part that has to be ready before this one can begin


class Plan(BaseModel):
    home: Path
    parts: list[Part]

    @property
    def folder(self) -> Path:
        return self.home / "stack"


class Running(BaseModel):
    pid: int
    started: float  # see lightning_core.process.linux.created


class State(BaseModel):
    supervisor: Running
    parts: dict[str, Running] = {}

    @property
    def alive(self) -> bool:
        return is_running(self.supervisor.pid, self.supervisor.started)


class Ports(BaseModel):
    """0 is any free one."""

    prefect: int = 4200
    gateway: int = 8090
    mlflow: int = 5000
    worker: int = 4201  # the worker's health
    page: int = 4280


def make_plan(
    home: Path,
    gateway: GatewaySettings,
    ports: Ports,
    prefect_db: str | None = None,
    mlflow_db: str | None = None,
    auth: bool = False,
) -> Plan:
    """Return the plan of what runs for a home.

    auth: Prefect and MLflow answer only those who know what is in `stack/auth`.
    Raises SettingsError for a port that is taken, naming the part and the option, and ModuleNotFoundError where the program of a part is
    not installed.
    """
    for program in ("prefect", "mlflow", *(["flask_wtf"] if auth else [])):
        if find_spec(program) is None:
            raise ModuleNotFoundError(f"No module named {program!r}", name=program)
    home = home.resolve()
    chosen = _free_ports(ports.model_dump())
    url = {name: f"http://127.0.0.1:{port}" for name, port in chosen.items()}
    prefect = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"{url['prefect']}/api",
        "PREFECT_UI_API_URL": f"{url['prefect']}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    if prefect_db is not None:
        prefect["PREFECT_API_DATABASE_CONNECTION_URL"] = prefect_db
    mlflow = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(chosen["mlflow"]), "--workers", "1"]
    server, record, users = {}, {"MLFLOW_BACKEND_STORE_URI": mlflow_db or f"sqlite:///{home / 'mlflow.db'}"}, {}
    if auth:
        known = load_auth(home / "stack")
        user, _, password = known.partition(":")
        server, users = {"PREFECT_SERVER_API_AUTH_STRING": known}, {"PREFECT_API_AUTH_STRING": known}
        users |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
        mlflow += ["--app-name", "basic-auth"]
        record |= _mlflow_auth(home / "stack", user, password)
    python = [sys.executable, "-m"]
    worker = ["prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process", "--with-healthcheck"]
    worker_health = {
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(chosen["worker"]),
    }
    own = gateway.model_copy(update={"port": chosen["gateway"]})
    return Plan(
        home=home,
        parts=[
            Part(
                name="prefect",
                command=prefect_api.server_command("--host", "127.0.0.1", "--port", str(chosen["prefect"])),
                environment=prefect | server | users,
                ready=f"{url['prefect']}/api/health",
                shown=url["prefect"],
            ),
            Part(
                name="gateway",
                command=gateway_command(home, own),
                ready=f"{url['gateway']}/health",
                shown=f"{url['gateway']} (OpenAI API and OTLP)",
            ),
            Part(
                name="mlflow",
                command=[*python, *mlflow],
                environment=record,
                ready=f"{url['mlflow']}/health",
                shown=url["mlflow"],
            ),
            Part(
                name="page",
                command=[
                    *python,
                    "lightning_flows.flows.cli",
                    "ui",
                    "--home",
                    str(home),
                    "--port",
                    str(chosen["page"]),
                ],
                ready=f"{url['page']}/static/page.css",
                shown=url["page"],
            ),
            Part(
                name="worker",
                command=[*python, *worker],
                environment=prefect | worker_health | users,
                ready=f"{url['worker']}/health",
                shown=f"work pool {WORK_POOL!r}, PREFECT_API_URL={url['prefect']}/api",
                after="prefect",
            ),
        ],
    )


def load_auth(folder: Path) -> str:
    """Return `user:password` of Prefect and MLflow from `auth` in the stack's folder; the first call makes it."""
    return made_once(folder / "auth", lambda: f"lightning:{secrets.token_urlsafe(32)}")


def _mlflow_auth(folder: Path, user: str, password: str) -> dict[str, str]:
    """Return the environment of an MLflow server with one user, and write its settings to `folder`."""
    config = folder / "mlflow-auth.ini"
    lines = ["[mlflow]", "default_permission = NO_PERMISSIONS", f"admin_username = {user}"]
    lines += [f"database_uri = sqlite:///{folder / 'mlflow-auth.db'}"]
    lines += ["authorization_function = mlflow.server.auth:authenticate_request_basic_auth"]
    write_atomic(config, "\n".join([*lines, ""]).encode(), mode=PRIVATE)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
    }


def state_of(home: Path) -> State | None:
    """Return what the supervisor of a home wrote last; None where there is nothing, or nothing that can be read."""
    try:
        return State.model_validate_json((home.resolve() / "stack" / "state.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def start(plan: Plan) -> None:
    """Start the supervisor in a session of its own; what a killed one left running is ended first."""
    stop(plan.home)
    write_atomic(plan.folder / "plan.json", plan.model_dump_json(indent=1).encode(), mode=PRIVATE)  # with passwords
    # -P: no module in the folder where the user stands comes in the place of one that this needs.
    command = [sys.executable, "-P", "-m", "lightning_flows.flows.stack", str(plan.home)]
    process = Process(command, plan.folder / "supervisor.log")

    def begun() -> bool | None:
        state = state_of(plan.home)
        return True if state is not None and state.supervisor.pid == process.pid else None

    try:
        process.wait_until(begun, START_S, "the stack")
    except StartError as error:
        process.end(0)
        raise SettingsError(str(error)) from None


def stop(home: Path) -> bool:
    """End the stack of a home and all it left; returns whether there was anything."""
    state = state_of(home)
    if state is None:
        return False
    there = state.alive or any(is_running(p.pid, p.started) for p in state.parts.values())
    end_group(state.supervisor.pid, state.supervisor.started, _GRACE_S * len(state.parts))
    for part in (state_of(home) or state).parts.values():
        _end_part(part)
    if there:
        stop_orphans(home.resolve())
    (home.resolve() / "stack" / "state.json").unlink(missing_ok=True)
    return there


def _end_part(part: Running) -> None:
    """End a part, its own processes first: the flows of a worker stop what they run for homes of their own."""
    members = [(pid, created(pid)) for pid in group_members(part.pid, part.started) if pid != part.pid]
    kill([pid for pid, _ in members], signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while any(is_running(*member) for member in members) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    end_group(part.pid, part.started, _GRACE_S)


def is_ready(part: Part) -> bool:
    return prefect_api.answers(part.ready)


def _free_ports(wanted: dict[str, int]) -> dict[str, int]:
    """Return part → port, of which no two are the same."""
    found = {}
    with contextlib.ExitStack() as probes:
        for name, port in wanted.items():
            try:  # all listen until the last is found: a port that is only bound can be had twice
                probe = probes.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError as error:
                raise SettingsError(
                    f"port {port} for {name} is taken ({os.strerror(error.errno or 0)}); give --{name}-port another, or 0"
                ) from None
            found[name] = int(probe.getsockname()[1])
    return found


class _Supervisor:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._parts = [(part.name, Supervised(part.name, partial(self._start, part))) for part in plan.parts]
        self._state = State(supervisor=Running(pid=os.getpid(), started=created(os.getpid())))
        self._ended = False

    def run(self) -> None:
        """Run the parts until SIGTERM or SIGINT, then end them. Raises SettingsError where a flow is at work."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        if not claim_services(self._plan.home):
            raise SettingsError(
                f"a flow is at work in {self._plan.home}; wait for it, or stop it, then start the stack"
            )
        self._save()
        while not self._ended:
            for name, part in self._parts:
                if (process := part.look()) is not None:
                    self._state.parts[name] = Running(pid=process.pid, started=process.started)
                    self._save()
            time.sleep(_POLL_S)
        for name, _ in reversed(self._parts):  # the worker first: it would miss the others
            if (found := self._state.parts.get(name)) is not None:
                logger.info("ending %s", name)
                _end_part(found)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ended = True

    def _start(self, part: Part) -> Process | None:
        if part.after is not None and not is_ready(next(p for p in self._plan.parts if p.name == part.after)):
            return None
        log = self._plan.folder / f"{part.name}.log"
        return Process(part.command, log, os.environ | part.environment, dies_with_us=True)

    def _save(self) -> None:
        write_atomic(self._plan.folder / "state.json", self._state.model_dump_json(indent=1).encode())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        _Supervisor(Plan.model_validate_json((Path(sys.argv[1]) / "stack" / "plan.json").read_bytes())).run()
    except SettingsError as error:  # `start` shows the end of the log
        sys.exit(str(error))
