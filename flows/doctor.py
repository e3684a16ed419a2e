"""`lightning-flows doctor`: report what an agent lacks. No Prefect in here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from lightning_core.config import AgentSettings, PolicySettings, Settings, SettingsError, TaskSettings
from lightning_core.settings_file import explain_validation, load_settings
from lightning_flows.flows.command import interruptible

_MARKS = {"fine": "  ok     ", "missing": "  missing", "fatal": "  FATAL  "}


@click.command()
@click.argument("settings_file", required=False, type=click.Path(path_type=Path))
@click.option("--agent", help="The agent's command line, instead of settings.")
@click.option(
    "--python", type=click.Path(path_type=Path), help="The agent's interpreter or requirements.txt, as in agent.python."
)
@click.option("--model", default="policy", show_default=True, help="The model name that the agent asks for.")
@click.option("--task", help="The task, as JSON. Default: the first training task of the settings, or a small sum.")
def doctor(settings_file: Path | None, agent: str | None, python: Path | None, model: str, task: str | None) -> None:
    """Run an agent once behind a gateway of its own and report what training would lack, with a remedy for each.

    Exits with 1 if training would be impossible.
    """
    from lightning_core.checks.check import require
    from lightning_core.doctor.examine import examine

    settings = _settings(settings_file, agent, python, model)
    with interruptible():
        require(settings, "doctor", build=True)
    done = examine(settings, _task(settings, task, has_tasks=settings_file is not None))
    click.echo(f"the model was {done.model}")
    if done.printed:
        click.echo("the agent printed:\n" + "\n".join(f"    {line}" for line in done.printed.splitlines()))
    for finding in done.findings:
        click.echo(f"{_MARKS[finding.level]} {finding.name}: {finding.what}")
        if finding.remedy:
            click.echo("            → " + finding.remedy.replace("\n", "\n              "))
    click.echo(_verdict({finding.name for finding in done.findings if finding.level == "fatal"}))
    if not done.trains:
        raise SystemExit(1)


def _verdict(fatal: set[str]) -> str:
    if fatal == {"unknown_model"}:
        return "it can be trained once that line is in its settings"
    return "it cannot be trained like this" if fatal else "it can be trained"


def _settings(file: Path | None, agent: str | None, python: Path | None, model: str) -> Settings:
    if (file is None) == (agent is None):
        raise SettingsError("give either a settings file or --agent COMMAND")
    if file is not None:
        return load_settings(file)
    try:
        return Settings(
            agent=AgentSettings(command=agent, python=python),
            tasks=TaskSettings(train="(none)"),
            policies=[PolicySettings(aliases=[] if model == PolicySettings().name else [model])],
        )
    except ValidationError as error:
        raise SettingsError(f"--agent, --python or --model: {explain_validation(error)}") from None


def _task(settings: Settings, given: str | None, has_tasks: bool) -> dict[str, Any]:
    from lightning_core.doctor.examine import QUESTION
    from lightning_core.epoch.task_file import load_tasks

    if given is None:
        if not has_tasks:
            return QUESTION
        return load_tasks(settings.tasks.train, "tasks.train")[0].content
    try:
        task = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--task is no JSON: {error}") from None
    if not isinstance(task, dict):
        raise SettingsError("--task: every task is a JSON object")
    return task
