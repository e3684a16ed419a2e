"""`lightning-flows check`: check what a run needs. No Prefect in here."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from lightning_core.config import SettingsError
from lightning_flows.flows.command import interruptible, load, set_option, settings_argument


@click.command()
@settings_argument
@set_option
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=1),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the import of your own code may take.",
)
def check(settings_file: Path, assignments: tuple[str, ...], deadline_s: float) -> None:
    """Check everything that would end a run later: settings, tasks, agent, grader, rules, GPUs, memory, disk.

    Changes nothing. `train` and the other flow commands do the same first. Exits with 1 if something is wrong.
    """
    from lightning_core.checks.check import check as look
    from lightning_core.checks.result import Check
    from lightning_core.checks.user_imports import Patience

    try:
        settings = load(settings_file, assignments)
    except SettingsError as error:
        click.echo(Check("error", "settings", str(error)).line())
        raise SystemExit(1) from None
    each = settings.rollout
    of = f"{settings.epochs} epochs of {each.tasks_per_epoch} tasks, {each.group_size} rollouts a task"
    click.echo(Check("ok", "settings", f"run {settings.run}: {of}").line())
    patience = Patience(deadline_s, lambda text: click.echo(text, err=True))

    def stop(*_: object) -> None:
        # Python loses an exception that is raised while it calls back during an import; the event it does not lose.
        patience.stopped.set()
        raise KeyboardInterrupt

    with interruptible():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        found = look(settings, patience=patience)
        if patience.stopped.is_set():
            raise KeyboardInterrupt
    for one in found:
        click.echo(one.line())
    wrong = sum(one.level == "error" for one in found)
    click.echo("it can run" if not wrong else f"it cannot run: {wrong} of {len(found) + 1} are wrong")
    if wrong:
        raise SystemExit(1)
