"""`lightning-flows up`, `down` and `deploy`: the local stack, from a terminal or `make`, and what runs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightning_core.config import GatewaySettings
from lightning_flows.flows.command import ROOT, home_option, load, settings_argument

if TYPE_CHECKING:
    from lightning_flows.flows.stack import Plan

_port = click.IntRange(0, 65535)


@click.command()
@home_option
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    help="Settings file, read for the `gateway:` section.",
)
@click.option("--prefect-port", type=_port, default=4200, show_default=True)
@click.option("--gateway-port", type=_port, default=8090, show_default=True)
@click.option("--mlflow-port", type=_port, default=5000, show_default=True)
@click.option("--worker-port", type=_port, default=4201, show_default=True, help="Port of the worker's health check.")
@click.option("--page-port", type=_port, default=4280, show_default=True, help="Port of `lightning-flows ui`.")
@click.option("--prefect-db", metavar="URL", help="postgresql+asyncpg://…; default: SQLite in the home.")
@click.option("--mlflow-db", metavar="URL", help="postgresql://…; default: SQLite in the home.")
@click.option(
    "--auth", is_flag=True, help="Prefect and MLflow answer those alone who know what is in stack/auth of the home."
)
@click.option(
    "--deploy/--no-deploy",
    default=True,
    show_default=True,
    help="Deploy prefect.yaml, and create the limit `trainer` and the alerts of --alert-webhook.",
)
@click.option(
    "--alert-webhook", metavar="URL", help="Address that gets a POST when a flow run fails, collapses, or waits."
)
def up(
    home: Path,
    settings_file: Path | None,
    prefect_port: int,
    gateway_port: int,
    mlflow_port: int,
    worker_port: int,
    page_port: int,
    prefect_db: str | None,
    mlflow_db: str | None,
    auth: bool,
    deploy: bool,
    alert_webhook: str | None,
) -> None:
    """Start Prefect's server and UI, a worker, the gateway, MLflow's UI and the page of the runs, and restart those that die."""
    from lightning_flows.flows import stack

    state = stack.state_of(home)
    if state is not None and state.alive:
        click.echo("the stack is up already; `lightning-flows down` ends it")
        _show(stack.Plan.model_validate_json((home / "stack" / "plan.json").read_bytes()))
        return
    gateway = GatewaySettings() if settings_file is None else load(settings_file, ()).gateway
    ports = stack.Ports(
        prefect=prefect_port, gateway=gateway_port, mlflow=mlflow_port, worker=worker_port, page=page_port
    )
    plan = stack.make_plan(home, gateway, ports, prefect_db, mlflow_db, auth)
    stack.start(plan)
    try:
        _wait_until_ready(plan)
        if deploy:
            _deploy(plan, alert_webhook)
    except BaseException:
        stack.stop(home)
        raise
    _show(plan)


@click.command()
@home_option
def down(home: Path) -> None:
    """End the stack and its running flows; run a flow again to resume it."""
    from lightning_flows.flows import stack

    click.echo("the stack is down" if stack.stop(home) else f"no stack runs for {home}")


@click.command()
@settings_argument
@click.option("--name", help="Name of the deployments. Default: the settings' `run`.")
@click.option("--cron", metavar="EXPRESSION", help="When `train` runs (UTC), from now on: '0 2 * * *' is every night.")
@click.option("--pool", default="local", show_default=True, help="Work pool that runs the deployments.")
def deploy(settings_file: Path, name: str | None, cron: str | None, pool: str) -> None:
    """Deploy train, train-epoch, evaluate and learn with these settings; deploy again to update them.

    Runs work in the folder where this is called. Existing schedules stay; --cron replaces its earlier one.
    """
    settings = load(settings_file, ())
    from lightning_core.checks.check import require

    require(settings, "deploy")  # logged, not printed: what it prints is what it registered
    from prefect.settings import PREFECT_API_URL

    from lightning_flows.flows.deployments import register

    registered = register(settings, name or settings.run, pool, cron)
    for full_name, schedules in registered.items():
        click.echo(full_name + "".join(f"  schedule: {schedule}" for schedule in schedules))
    url, first = PREFECT_API_URL.value(), next(iter(registered))
    click.echo(f"run      PREFECT_API_URL={url} prefect deployment run {first}")
    click.echo("         other settings for one run: --param overrides='{\"epochs\": 2}'")


def _wait_until_ready(plan: Plan) -> None:
    from lightning_flows.flows import stack

    deadline, waiting = time.monotonic() + stack.START_S, list(plan.parts)
    while waiting:
        for part in [part for part in waiting if stack.is_ready(part)]:
            click.echo(f"{part.name} is ready")
            waiting.remove(part)
        state = stack.state_of(plan.home)
        if state is None or not state.alive:
            raise click.ClickException(f"the stack has ended; see {plan.folder / 'supervisor.log'}")
        if waiting and time.monotonic() > deadline:
            names = ", ".join(part.name for part in waiting)
            logs = ", ".join(str(plan.folder / f"{part.name}.log") for part in waiting)
            raise click.ClickException(f"not ready after {stack.START_S:.0f} s: {names}; see {logs}")
        time.sleep(0.2)


def _deploy(plan: Plan, alert_webhook: str | None) -> None:
    """Create the deployments of prefect.yaml in the stack's home, the limit of one trainer at a time, and the automations."""
    deployments = plan.folder / "prefect.yaml"
    home = f"home: {json.dumps(str(plan.home))}"
    deployments.write_text((ROOT / "prefect.yaml").read_text().replace("home: var", home))
    environment = os.environ | plan.parts[0].environment | {"PWD": str(ROOT)}
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    commands = [
        [*prefect, "deploy", "--all", "--prefect-file", str(deployments)],
        [*prefect, "concurrency-limit", "create", "trainer", "1"],
    ]
    if alert_webhook is not None:
        commands.append([sys.executable, "-m", "lightning_flows.flows.automations", alert_webhook])
    for command in commands:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise click.ClickException(f"{' '.join(command[2:])}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if alert_webhook is None:
        click.echo("no alerts: give --alert-webhook an address that takes a POST")


def _show(plan: Plan) -> None:
    for part in plan.parts:
        click.echo(f"{part.name:<8} {part.shown}")
    click.echo(f"logs     {plan.folder}")
    url = plan.parts[0].environment["PREFECT_API_URL"]
    if "PREFECT_API_AUTH_STRING" in plan.parts[0].environment:
        click.echo(
            f"auth     export PREFECT_API_AUTH_STRING=$(cat {plan.folder / 'auth'})  (user:password, of MLflow too)"
        )
    click.echo(f"run      PREFECT_API_URL={url} prefect deployment run train-epoch/local")
