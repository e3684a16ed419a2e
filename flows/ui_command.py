"""`lightning-flows ui`: the page of a lake."""

from __future__ import annotations

from pathlib import Path

import click

from lightning_core.errors import Missing
from lightning_flows.flows.command import home_option


@click.command()
@home_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address than loopback asks for a token.")
@click.option("--port", default=4280, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
def ui(home: Path, host: str, port: int) -> None:
    """Show runs, tasks, rollouts, calls and tokens in a browser, until Ctrl-C. It changes nothing."""
    from lightning_core.ui.serve import serve

    if not home.is_dir():
        raise Missing(f"{home}: no such folder; name the folder of a run with --home")
    serve(home, host, port, click.echo)


@click.command()
@click.argument("run")
@home_option
@click.option("--into", type=click.Path(path_type=Path), default=Path("run.html"), show_default=True)
def report(run: str, home: Path, into: Path) -> None:
    """Write a RUN into one HTML file, without a server: curves, tasks, and the rollouts that changed most or were worst."""
    from lightning_core.ui.one_file import write

    size = write(home, run, into)
    click.echo(f"{into}: {size / 1e6:.1f} MB")
