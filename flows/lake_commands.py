"""`lightning-flows ingest`, `lake`, `sql` and `explain`: what is in the lake, and its upkeep by hand. No Prefect in here."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightning_core.config import Settings, SettingsError
from lightning_core.errors import Missing
from lightning_flows.flows.command import home_option, of_a_home

if TYPE_CHECKING:
    from lightning_core.lake.lake import Ingested

_grace_option = click.option(
    "--grace",
    "grace_min",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="MINUTES",
    help="How long replaced files stay for queries that still read them.",
)


_of_a_home = of_a_home("the `lake:` section")


@click.group()
def lake() -> None:
    """Compact, clean, check and publish the lake of spans."""


@click.command()
@_of_a_home
@click.option("--follow", is_flag=True, help="Repeat until Ctrl-C.")
@click.option("--every", type=click.FloatRange(min=0.1), default=10.0, show_default=True, metavar="SECONDS")
@click.option(
    "--unredacted", is_flag=True, help="From now on store spans as they came, although they were redacted until now."
)
def ingest(home: Path, settings: Settings | None, follow: bool, every: float, unredacted: bool) -> None:
    """Decode what the gateway has received into the lake, merge small files, renew the catalog; flows do it themselves."""
    from lightning_core.epoch.decoding import decode_spool
    from lightning_core.epoch.decoding import ingest as ingest_spool
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.redact import Redaction
    from lightning_core.lake.storage import publish as put

    _existing(home, "spool", "lake")
    if unredacted and settings is not None and Redaction.of(settings.lake) is not None:
        raise SettingsError("--unredacted, but the settings have rules to redact by; leave one of the two out")
    redaction = Redaction() if unredacted else Redaction.of(settings.lake) if settings is not None else None
    found, storage = Lake(home), settings.lake.storage if settings is not None else None
    if follow:
        click.echo(f"decoding {found.spool} every {every:g} s   (Ctrl-C ends it)")
    try:
        done = ingest_spool(found, redaction)
        while True:
            if done.spans or done.rejected or done.retries or not follow:
                click.echo(_counts(done))
                if storage is not None:
                    put(found, storage)
            if not follow:
                return
            time.sleep(every)
            done = decode_spool(found, redaction)
    except KeyboardInterrupt:
        click.echo("\nended; what was decoded is in the lake", err=True)


@lake.command()
@_of_a_home
@_grace_option
def compact(home: Path, settings: Settings | None, grace_min: float) -> None:
    """Merge small files into large ones sorted by rollout, and remove what no longer counts."""
    from lightning_core.lake import compact as compaction
    from lightning_core.lake.lake import Lake

    found = Lake(_existing(home))
    done = compaction.compact(found, everything=True)
    freed = compaction.tidy(found, grace_min * 60)
    if done.before:
        click.echo(
            f"{done.before} files of {done.bytes_before / 1e6:,.1f} MB became {done.after} of {done.bytes_after / 1e6:,.1f} MB"
            + (f"; {done.retries} spans were there twice" if done.retries else "")
        )
    else:
        click.echo("nothing to merge")
    click.echo(f"{freed / 1e6:,.1f} MB freed; replaced files stay {grace_min:g} minutes for those who read them")


@lake.command()
@_of_a_home
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Default: `lake.keep_days` of the settings."
)
@click.option(
    "--run", "runs", multiple=True, metavar="NAME", help="Remove this run, with its tables; its policies stay."
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@_grace_option
def retain(
    home: Path,
    settings: Settings | None,
    older_than: float | None,
    runs: tuple[str, ...],
    dry_run: bool,
    grace_min: float,
) -> None:
    """Remove old spans, and whole runs except their policies."""
    from lightning_core.lake import compact as compaction
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.retain import retain as remove

    if older_than is None and not runs and settings is not None:
        older_than = settings.lake.keep_days
    if older_than is None and not runs:
        raise SettingsError("say what goes: --older-than DAYS, --run NAME, or --settings with `lake.keep_days`")
    found = Lake(_existing(home))
    leaving = remove(found, older_than, runs, dry_run)
    click.echo("would remove " if dry_run else "removed ", nl=False)
    click.echo("\n".join(leaving.lines()))
    if not dry_run:
        freed = compaction.tidy(found, grace_min * 60)
        click.echo(f"{freed / 1e6:,.1f} MB freed; removed files stay {grace_min:g} minutes for those who read them")


@lake.command()
@_of_a_home
def verify(home: Path, settings: Settings | None) -> None:
    """Compare all files of the lake with what was written; exit with 1 where one differs or is gone."""
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.verify import unsound

    found = list(unsound(Lake(_existing(home))))
    for one in found:
        remedy = (
            f"`lightning-flows lake repair` sets it aside, and its {one.spans:,} spans count as lost"
            if one.epoch is None
            else f"derive {one.epoch} again (`--from sequences`)"
        )
        click.echo(f"{one.path}: {one.what}; put it back from a copy, or {remedy}")
    if found:
        sys.exit(1)
    click.echo("all files are what was written")


@lake.command()
@_of_a_home
def repair(home: Path, settings: Settings | None) -> None:
    """Put damaged manifests back, set aside span files that are not what was written, decode rejected spans anew.

    Spans of a file that is set aside count as lost; all others can be read again.
    """
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.redact import Redaction
    from lightning_core.lake.repair import repair as mend

    done = False
    for line in mend(Lake(_existing(home)), Redaction.of(settings.lake) if settings is not None else None):
        click.echo(line)
        done = True
    if not done:
        click.echo("nothing to repair")


@lake.command()
@_of_a_home
@click.option("--to", "url", metavar="URL", help="Default: `lake.storage` of the settings.")
def publish(home: Path, settings: Settings | None, url: str | None) -> None:
    """Publish what is new in the lake to object storage, for readers elsewhere; `lightning-flows sql --lake URL` queries it."""
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.storage import publish as put

    url = url or (settings.lake.storage if settings is not None else None)
    if url is None:
        raise SettingsError("say where to: --to s3://bucket/prefix, or --settings with `lake.storage`")
    done = put(Lake(_existing(home)), url)
    click.echo(f"{done.files} files put there, {done.bytes / 1e6:,.1f} MB; {done.removed} removed that no longer count")


@lake.command()
@home_option
@click.option("--from", "url", metavar="URL", required=True, help="Where the lake was published.")
def fetch(home: Path, url: str) -> None:
    """Bring a published lake into an empty home, which publishes it from then on: the former home is refused.

    Policies are not in it: copy `policies/` too, to go on with the training of its runs.
    """
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.storage import fetch as get

    done = get(Lake(home), url)
    click.echo(f"{done.files} files fetched, {done.bytes / 1e6:,.1f} MB")


@click.command()
@click.argument("question", required=False)
@home_option
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


@click.command()
@click.argument("rollout", metavar="[ROLLOUT|TASK]", required=False)
@home_option
@click.option("--lake", "url", metavar="URL", help="A lake published on object storage, in place of --home.")
@click.option("--run", help="Default: any run, the newest first.")
@click.option("--epoch", type=int, help="Default: the newest epoch that has the rollout.")
@click.option("--worst", is_flag=True, help="The rollout with the least reward.")
@click.option("--failed", is_flag=True, help="A rollout that was not right.")
@click.option(
    "--tree", is_flag=True, help="Also the spans as found and as repaired, and all that each call was credited with."
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def explain(
    rollout: str | None,
    home: Path,
    url: str | None,
    run: str | None,
    epoch: int | None,
    worst: bool,
    failed: bool,
    tree: bool,
    form: str,
) -> None:
    """Explain a rollout: task, conversation, output, reward, and how much each call was pushed.

    Names a ROLLOUT, or a TASK, of which the newest rollout is taken; or none, and --worst or --failed choose.
    """
    from rich.console import Console

    from lightning_core.lake.explain import as_json
    from lightning_core.lake.explain_view import view
    from lightning_core.ui.figures import Figures
    from lightning_core.ui.rollout import choose, see
    from lightning_core.ui.terminal import story

    if rollout is None and not (worst or failed):
        raise click.UsageError("name a rollout or a task, or choose by --worst or --failed")
    figures = Figures(url or home / "lake")
    run, chosen, epoch = choose(figures, rollout, run, epoch, worst, failed)
    seen = see(figures, None if url else home, run, chosen, epoch)
    if form == "json":
        click.echo(as_json(seen.found))
        return
    console = Console(highlight=False)
    whole_lines = not console.is_terminal and "COLUMNS" not in os.environ  # a file has no width
    console = Console(highlight=False, soft_wrap=whole_lines, width=150 if whole_lines else None)
    console.print(story(seen))
    if tree:
        console.print(view(seen.found))


def _counts(done: Ingested) -> str:
    line = f"{done.spans:,} spans decoded"
    if done.retries:
        line += f", {done.retries:,} were there already"
    if done.rejected:
        line += f", {done.rejected:,} rejected (see spool/rejected, and table rejections)"
    if done.refused:
        line += f", {done.refused:,} with claims that count for nothing (view refused_claims)"
    return line


def _existing(home: Path, *parts: str) -> Path:
    """Return `home`, where any of these folders is in it (default: the lake); raises Missing."""
    parts = parts or ("lake",)
    if not any((home / part).is_dir() for part in parts):
        raise Missing(f"{home}: no {' and no '.join(parts)} there; name the folder of a run with --home")
    return home
