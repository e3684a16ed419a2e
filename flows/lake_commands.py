"""`lightning-flows ingest` and `lake`: decoding, compaction and retention by hand. No Prefect in here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lightning_core.config import Settings, SettingsError
from lightning_core.errors import Missing
from lightning_core.settings_file import load_settings
from lightning_flows.flows.command import require_received

if TYPE_CHECKING:
    from lightning_core.lake.lake import Ingested

_home_option = click.option(
    "--home", type=click.Path(path_type=Path), help="Folder of the runs; default: that of the settings, or var."
)
_settings_option = click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    help="Settings file, read for `home` and the `lake:` section.",
)
_grace_option = click.option(
    "--grace",
    "grace_min",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="MINUTES",
    help="How long replaced files stay for queries that still read them.",
)


@click.group()
def lake() -> None:
    """Compact, clean and publish the lake of spans."""


@click.command()
@_home_option
@_settings_option
@click.option("--follow", is_flag=True, help="Repeat until Ctrl-C.")
@click.option("--every", type=click.FloatRange(min=0.1), default=10.0, show_default=True, metavar="SECONDS")
@click.option(
    "--unredacted", is_flag=True, help="From now on store spans as they came, although they were redacted until now."
)
def ingest(home: Path | None, settings_file: Path | None, follow: bool, every: float, unredacted: bool) -> None:
    """Decode what the gateway has received into the lake, merge small files, renew the catalog; flows do it themselves."""
    from lightning_core.epoch.decoding import decode_spool
    from lightning_core.epoch.decoding import ingest as ingest_spool
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.redact import Redaction
    from lightning_core.lake.storage import publish as put

    settings = _settings(settings_file)
    home = _home(home, settings)
    require_received(home)
    if unredacted and settings is not None and Redaction.of(settings.lake) is not None:
        raise SettingsError(f"--unredacted, but {settings_file} has rules to redact by; leave one of the two out")
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
@_home_option
@_settings_option
@_grace_option
def compact(home: Path | None, settings_file: Path | None, grace_min: float) -> None:
    """Merge small files into large ones sorted by rollout, and remove what no longer counts."""
    from lightning_core.lake import compact as compaction
    from lightning_core.lake.lake import Lake

    found = Lake(_existing(_home(home, _settings(settings_file))))
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
@_home_option
@_settings_option
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Default: `lake.keep_days` of the settings."
)
@click.option(
    "--run", "runs", multiple=True, metavar="NAME", help="Remove this run, with its tables; its policies stay."
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@_grace_option
def retain(
    home: Path | None,
    settings_file: Path | None,
    older_than: float | None,
    runs: tuple[str, ...],
    dry_run: bool,
    grace_min: float,
) -> None:
    """Remove old spans, and whole runs except their policies."""
    from lightning_core.lake import compact as compaction
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.retain import retain as remove

    settings = _settings(settings_file)
    if older_than is None and not runs and settings is not None:
        older_than = settings.lake.keep_days
    if older_than is None and not runs:
        raise SettingsError("say what goes: --older-than DAYS, --run NAME, or --settings with `lake.keep_days`")
    found = Lake(_existing(_home(home, settings)))
    leaving = remove(found, older_than, runs, dry_run)
    click.echo("would remove " if dry_run else "removed ", nl=False)
    click.echo("\n".join(leaving.lines()))
    if not dry_run:
        freed = compaction.tidy(found, grace_min * 60)
        click.echo(f"{freed / 1e6:,.1f} MB freed; removed files stay {grace_min:g} minutes for those who read them")


@lake.command()
@_home_option
@_settings_option
@click.option("--to", "url", metavar="URL", help="Default: `lake.storage` of the settings.")
def publish(home: Path | None, settings_file: Path | None, url: str | None) -> None:
    """Publish what is new in the lake to object storage, for readers elsewhere; `lightning-flows sql --lake URL` queries it."""
    from lightning_core.lake.lake import Lake
    from lightning_core.lake.storage import publish as put

    settings = _settings(settings_file)
    url = url or (settings.lake.storage if settings is not None else None)
    if url is None:
        raise SettingsError("say where to: --to s3://bucket/prefix, or --settings with `lake.storage`")
    done = put(Lake(_existing(_home(home, settings))), url)
    click.echo(f"{done.files} files put there, {done.bytes / 1e6:,.1f} MB; {done.removed} removed that no longer count")


def _counts(done: Ingested) -> str:
    line = f"{done.spans:,} spans decoded"
    if done.retries:
        line += f", {done.retries:,} were there already"
    if done.rejected:
        line += f", {done.rejected:,} rejected (see spool/rejected, and table rejections)"
    if done.refused:
        line += f", {done.refused:,} with claims that count for nothing (view refused_claims)"
    return line


def _settings(path: Path | None) -> Settings | None:
    return load_settings(path) if path is not None else None


def _home(home: Path | None, settings: Settings | None) -> Path:
    return home or (settings.home if settings is not None else Path("var"))


def _existing(home: Path) -> Path:
    if not (home / "lake").is_dir():
        raise Missing(f"{home}: no lake there; name the folder of a run with --home")
    return home
