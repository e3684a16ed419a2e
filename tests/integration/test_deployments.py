"""Settings as deployments, on Prefect's real server with a real worker: a schedule starts a run, what is wrong ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from prefect.settings import PREFECT_API_URL, temporary_settings

from lightning_core.config import GatewaySettings
from lightning_flows.flows import stack
from lightning_flows.flows.cli import main
from tests.gateway_rig import wait_for

SETTINGS: dict[str, Any] = {
    "run": "mine",
    "agent": {"callable": "my_agent.py:run"},
    "tasks": {"train": "my_tasks.jsonl", "evaluate": "my_tasks.jsonl"},
    "reward": {"grader": "my_agent.py:grade"},
}
AGENT = "def run(task):\n    return '4'\n\n\ndef grade(task, output, spans):\n    return 1.0\n"
SECONDS = 180
# In which the server looks for schedules that were changed, and the worker for runs; else 5 and 10.
OFTEN = {"PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1", "PREFECT_WORKER_QUERY_SECONDS": "2"}


def until(condition: Callable[[], Any]) -> None:
    """Wait for it. Asked more often, the server would do little else."""
    wait_for(condition, SECONDS, every=0.5)


class Prefect:
    """The server and the worker of the stack, and commands in a user's folder."""

    def __init__(self, plan: stack.Plan, folder: Path) -> None:
        self.folder = folder
        self.page = plan.parts[0].shown
        self._environment = {"PREFECT_API_URL": f"{self.page}/api", "PREFECT_HOME": str(plan.home / "client")}

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name(arguments[0]), *arguments[1:]],
            cwd=self.folder,
            env=os.environ | self._environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def ask(self, path: str, method: str | None = None, **body: Any) -> Any:
        request = urllib.request.Request(f"{self.page}/api/{path}", method=method)
        request.add_header("Content-Type", "application/json")
        if body:
            request.data = json.dumps(body).encode()
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503:  # its SQLite is locked for a moment
                    raise
            except TimeoutError:  # or for long
                pass
            time.sleep(0.5)

    def change_schedule(self, name: str, **changes: Any) -> str:
        """As a user would in Prefect's page; returns the schedule's id."""
        train = self.ask(f"deployments/name/train/{name}")
        schedule = str(train["schedules"][0]["id"])
        self.ask(f"deployments/{train['id']}/schedules/{schedule}", "PATCH", **changes)
        return schedule

    def run(self, flow: str, **body: Any) -> str:
        deployment = self.ask(f"deployments/name/{flow}/mine")
        return str(self.ask(f"deployments/{deployment['id']}/create_flow_run", **body)["id"])

    def ended(self, run: str) -> dict[str, Any]:
        until(lambda: self.ask(f"flow_runs/{run}")["state_type"] in ("FAILED", "COMPLETED", "CRASHED"))
        return dict(self.ask(f"flow_runs/{run}"))

    def log(self, run: str) -> str:
        lines = partial(self.ask, "logs/filter", logs={"flow_run_id": {"any_": [run]}}, limit=200)
        until(lambda: any("Finished in state" in line["message"] for line in lines()))
        return "\n".join(line["message"] for line in lines())


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """Prefect's part of the stack, started in a folder of the user's own, in which names of ours are taken."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("user")
    (folder / "my_agent.py").write_text(AGENT)
    (folder / "my_tasks.jsonl").write_text('{"question": "2+2", "answer": "4"}\n')
    (folder / "my.yaml").write_text(yaml.safe_dump(SETTINGS))
    for taken in ("flows", "tasks"):
        (folder / f"{taken}.py").write_text("raise RuntimeError('of the user')\n")
    plan = stack.make_plan(home, GatewaySettings(), stack.Ports(prefect=0, gateway=0, mlflow=0, worker=0, page=0))
    plan = plan.model_copy(update={"parts": [part for part in plan.parts if part.name in ("prefect", "worker")]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PREFECT_UI_API_URL", "http://127.0.0.1:4200/api")  # another server's
        for name, value in OFTEN.items():
            patch.setenv(name, value)
        stack.start(plan)
    try:
        until(lambda: all(stack.is_ready(part) for part in plan.parts))
        yield Prefect(plan, folder)
    finally:
        stack.stop(home)


@pytest.fixture(scope="module")
def deployed(prefect: Prefect) -> str:
    """What `lightning-flows deploy` printed."""
    done = prefect.command("lightning-flows", "deploy", "my.yaml", "--cron", "0 0 1 1 *")
    assert done.returncode == 0, done.stderr
    return done.stdout


def deploy(prefect: Prefect, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], *options: str) -> Result:
    monkeypatch.chdir(prefect.folder)
    Path("other.yaml").write_text(yaml.safe_dump(settings))
    with temporary_settings({PREFECT_API_URL: f"{prefect.page}/api"}):
        return CliRunner().invoke(main, ["deploy", "other.yaml", *options])


def test_prefects_page_knows_the_server_it_belongs_to(prefect: Prefect) -> None:
    with urllib.request.urlopen(f"{prefect.page}/ui-settings", timeout=30) as answer:
        assert json.load(answer)["api_url"] == f"{prefect.page}/api"


def test_settings_that_are_deployed_again_are_updated_and_keep_their_schedules(
    prefect: Prefect, deployed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "train/mine  schedule: 0 0 1 1 * (UTC)\ntrain-epoch/mine\nevaluate/mine\nlearn/mine\n" in deployed
    assert f"PREFECT_API_URL={prefect.page}/api prefect deployment run train/mine" in deployed
    prefect.change_schedule("mine", active=False)
    again = deploy(prefect, monkeypatch, SETTINGS | {"epochs": 7})
    assert "train/mine  schedule: 0 0 1 1 * (UTC), paused\n" in again.output
    assert prefect.ask("deployments/name/train/mine")["parameters"]["settings"]["epochs"] == 7


def test_a_schedule_that_is_resumed_starts_a_run_in_the_users_folder(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks are gone since it was deployed, so the run needs no vLLM to end."""
    tasks = prefect.folder / "gone.jsonl"
    tasks.write_text('{"question": "2+2"}\n')
    gone = SETTINGS | {"run": "nightly", "tasks": {"train": "gone.jsonl"}}
    assert deploy(prefect, monkeypatch, gone, "--cron", "0 0 1 1 *").exit_code == 0
    tasks.unlink()
    prefect.change_schedule("nightly", active=False)
    # Less often than a run takes: several at once lock Prefect's SQLite for a minute.
    often = prefect.change_schedule("nightly", schedule={"cron": "* * * * * */20", "timezone": "UTC"})
    resumed = prefect.command("prefect", "deployment", "schedule", "resume", "train/nightly", often)
    assert resumed.returncode == 0, resumed.stderr
    failed = {"state": {"type": {"any_": ["FAILED"]}}, "name": {"any_": ["nightly"]}}
    until(lambda: prefect.ask("flow_runs/filter", flow_runs=failed))
    prefect.change_schedule("nightly", active=False)
    [run, *_] = prefect.ask("flow_runs/filter", flow_runs=failed)
    assert run["auto_scheduled"] and run["start_time"]
    assert f"tasks.train: {tasks}: no such file; give a .jsonl" in run["state"]["message"]
    assert "Traceback" not in prefect.log(run["id"])


def test_what_is_wrong_is_the_message_of_a_failed_run_whose_log_has_no_traceback(
    prefect: Prefect, deployed: str
) -> None:
    nowhere = f"tasks.evaluate: {prefect.folder / 'nowhere.jsonl'}: no such file"
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("train-epoch", {"settings": {"epcohs": 2}}, said_by_the_command_line(prefect, {"epcohs": 2})),
        ("evaluate", {"overrides": {"tasks.evaluate": "nowhere.jsonl"}}, nowhere),
        ("learn", {"overrides": {"reward.grader": "my_agent.py:no"}}, "reward.grader: 'my_agent.py' has no function"),
    ]
    for flow, given, message in wrong:  # one after another: submitted at once they lock Prefect's SQLite for a minute
        run = prefect.run(flow, parameters=given, enforce_parameter_schema=False)
        ended = prefect.ended(run)
        assert ended["state_type"] == "FAILED"
        assert message in ended["state"]["message"]
        assert "Traceback" not in prefect.log(run)


def said_by_the_command_line(prefect: Prefect, settings: dict[str, Any]) -> str:
    file = prefect.folder / "wrong.yaml"
    file.write_text(yaml.safe_dump(settings))
    done = CliRunner().invoke(main, ["settings", str(file)])
    assert done.exit_code == 1
    return done.output.removeprefix(f"Error: {file}: ").strip()


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (["--pool", "nope"], {}, "there is no work pool 'nope'; `make up` creates 'local'"),
        (["--cron", "nightly"], {}, "--cron 'nightly': this is no cron expression"),
        (["--name", "a/b"], {}, "--name 'a/b': write it with letters"),
        ([], {"epcohs": 2}, "other.yaml: unknown key `epcohs`"),
        ([], {"tasks": {"train": "nowhere.jsonl"}}, "tasks.train: {folder}/nowhere.jsonl: no such file"),
    ],
)
def test_what_cannot_be_deployed_is_one_line(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch, options: list[str], changes: dict[str, Any], message: str
) -> None:
    done = deploy(prefect, monkeypatch, SETTINGS | changes, *options)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert done.output.startswith(f"Error: {message.format(folder=prefect.folder)}")


@pytest.mark.parametrize(
    ("address", "message"),
    [(None, "PREFECT_API_URL is not set; `make up` starts"), ("http://127.0.0.1:9/api", "does not answer (")],
)
def test_without_a_server_nothing_is_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"agent": {"command": "true"}, "tasks": {"train": "tasks.jsonl"}}
    Path("tasks.jsonl").write_text('{"id": "1"}\n')
    Path("my.yaml").write_text(yaml.safe_dump(settings))
    with temporary_settings({PREFECT_API_URL: address} if address else {}, restore_defaults={PREFECT_API_URL}):
        done = CliRunner().invoke(main, ["deploy", "my.yaml"])
    assert done.exit_code == 1 and message in done.output and "`make up` starts" in done.output
