"""What else listens on loopback beside the gateway: with `up --auth`, Prefect and MLflow answer nobody who does not know the password."""

from __future__ import annotations

import base64
import json
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lightning_core.agents.environment import base_environment
from lightning_core.config import AgentSettings, GatewaySettings
from lightning_flows.flows import stack
from lightning_flows.flows.stack import Part, Plan, Ports
from tests.gateway_rig import client, rig, wait_for

SERVERS = {"prefect", "mlflow"}
ASKED = {"prefect": "/api/flows/count", "mlflow": "/api/2.0/mlflow/experiments/search"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """The stack's two servers, as `up --auth` starts them."""
    home = tmp_path_factory.mktemp("home")
    plan = stack.make_plan(home, GatewaySettings(), Ports(prefect=0, gateway=0, mlflow=0, worker=0, page=0), auth=True)
    plan.parts = [part for part in plan.parts if part.name in SERVERS]
    stack.start(plan)
    try:
        wait_for(lambda: all(stack.is_ready(part) for part in plan.parts), seconds=240)
        yield plan
    finally:
        stack.stop(home)


def status(part: Part, headers: dict[str, str]) -> int:
    body, kind = json.dumps({"max_results": 1}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(part.shown + ASKED[part.name], body, kind | headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_they_answer_those_alone_who_know_the_password(running: Plan) -> None:
    known = (running.folder / "auth").read_text()

    def as_(user: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}

    for part in running.parts:
        assert status(part, {}) == status(part, as_("lightning:password")) == 401, part.name
        assert status(part, as_(known)) == 200, part.name


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_password_is_on_no_command_line_and_in_no_file_for_others(running: Plan) -> None:
    password = (running.folder / "auth").read_text().partition(":")[2]
    assert len(password) > 30
    lines = [str(process.info["cmdline"]) for process in psutil.process_iter(["cmdline"])]
    assert any("basic-auth" in line for line in lines) and not any(password in line for line in lines)
    holding = [file for file in running.home.rglob("*") if file.is_file() and password.encode() in file.read_bytes()]
    assert {file.name for file in holding} == {"auth", "plan.json"}
    assert not any(stat.S_IMODE(file.stat().st_mode) & 0o077 for file in holding)


def test_it_stays_the_same_when_the_stack_is_started_again(tmp_path: Path) -> None:
    assert stack.load_auth(tmp_path / "stack") == stack.load_auth(tmp_path / "stack")


def test_an_attempt_is_told_of_none_of_them(tmp_path: Path) -> None:
    """Whatever the flow's own environment says of them: an agent that needs one of these is given it by `agent.pass_environment`."""
    plan = stack.make_plan(
        tmp_path, GatewaySettings(), Ports(prefect=0, gateway=0, mlflow=0, worker=0, page=0), auth=True
    )
    outer = {"PATH": "/bin", "VLLM_API_KEY": "key", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    for part in plan.parts:
        outer |= part.environment
    assert {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD"} <= outer.keys()
    seen = base_environment(AgentSettings(command="true"), outer)
    told = [name for name in seen if name.startswith(("PREFECT", "MLFLOW", "VLLM"))]
    assert told == [] and not set(stack.load_auth(tmp_path / "stack").split(":")[1:]) & {*seen.values()}


def test_the_key_of_a_model_server_is_sent_to_it_and_shown_to_nobody(tmp_path: Path) -> None:
    with rig(tmp_path) as server:
        server.route(api_key="the-key-of-vllm")
        with client(server) as agent:
            reply = agent.chat.completions.create(model="policy", messages=[{"role": "user", "content": "hi"}])
        assert server.canned.headers[-1]["Authorization"] == "Bearer the-key-of-vllm"
        assert "the-key-of-vllm" not in reply.to_json() + json.dumps(server.handle.health())
        assert not any(b"the-key-of-vllm" in record.body for record in server.records())
    assert stat.S_IMODE((tmp_path / "services/routes.json").stat().st_mode) == 0o600
