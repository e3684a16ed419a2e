"""`lightning-flows what-if`: what other settings would have made of a run's rollouts."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lightning_core.config import SettingsError
from lightning_flows.flows.command import flow_of, load, set_option, settings_argument
from lightning_flows.flows.display import verbose_option
from lightning_flows.flows.tables import as_table, report_console

_TASKS = 10  # that are shown


@click.command("what-if")
@settings_argument
@set_option
@verbose_option
@click.option("--name", help="Name of what is kept under HOME/what-if. Default: made of what --set changes.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def what_if(settings_file: Path, assignments: tuple[str, ...], name: str | None, form: str) -> None:
    """Show what --set would have made of a run's recorded rollouts: rewards, groups, tokens, whose calls push the weights.

    SETTINGS_FILE has the settings that the run was trained with. Rolls nothing out, trains nothing, and changes nothing of the run; another
    grader is run on what was recorded.
    """
    settings = load(settings_file, assignments)
    changed = [assignment for assignment in assignments if not assignment.startswith("home=")]
    if not changed:
        raise SettingsError("say what would be otherwise: --set reward.assign=discounted --set reward.gamma=0.9")
    if name is not None and not re.fullmatch(r"[\w-][\w.-]{0,59}", name):  # `..` is the home itself
        raise SettingsError(f"--name {name}: letters, digits, `-`, `_` and `.` alone, and no `.` at the beginning")
    name = name or hashlib.sha256("\0".join(sorted(changed)).encode()).hexdigest()[:8]
    with flow_of(settings, "regrade"):
        from lightning_core.epoch.what_if import beside, compare
        from lightning_flows.flows.regrade import regrade

        other = beside(settings, name)
        regrade(other)
        found = compare(settings, other.home, name, changed)
    if form == "json":
        click.echo(json.dumps(asdict(found), indent=1))
        return
    console = report_console()
    console.print(as_table(map(_shown, found.epochs), f"run {found.run}, if {', '.join(found.changed)}"))
    console.print(as_table(map(_shown, found.agents), "agents", left=("policy", "agent")))
    console.print(
        as_table(map(_shown, found.tasks[:_TASKS]), "tasks, those first that change most", left=("policy", "task_id"))
    )
    console.print(
        f"its tables: lightning-flows sql --home {other.home}\nits page: lightning-flows ui --home {other.home}",
        soft_wrap=True,
    )


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in row.items()}
