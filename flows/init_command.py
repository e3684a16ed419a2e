"""`lightning-flows init`: a small example that runs as it is, to begin with. Its files are those of flows/starter."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from lightning_core.config import SettingsError

_STARTER = Path(__file__).with_name("starter")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path(), required=False)
def init(folder: Path) -> None:
    """Write a small working example into FOLDER (default: this one): agent, grader, tasks, settings. Overwrites nothing."""
    names = sorted(file.name for file in _STARTER.iterdir() if file.is_file())
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise SettingsError(f"{folder / there[0]} is there already, and nothing is overwritten; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(_STARTER / name, folder / name)
    click.echo(f"written to {folder}: {', '.join(names)}. Next:\n")
    if folder != Path():
        click.echo(f"  cd {folder}")
    click.echo("  lightning-flows check settings.yaml     # is all there that a run needs?")
    click.echo("  lightning-flows doctor settings.yaml    # the agent runs once: can it be trained?")
    click.echo("  lightning-flows train settings.yaml     # rollouts, training, held-out tasks before and after")
