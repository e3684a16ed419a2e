"""`lightning-flows why`: the diagnosis of a run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from lightning_flows.flows.command import home_option

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold"}


@click.command()
@click.argument("run", required=False)
@home_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def why(run: str | None, home: Path, form: str) -> None:
    """Diagnose a RUN (default: the newest): what went wrong in its epochs, worst first, with remedy and the rows behind it."""
    import duckdb

    from lightning_core.lake import ask, catalog
    from lightning_core.lake.manifest import LakeError
    from lightning_core.lake.why import diagnose, newest_run

    with catalog.connect(home / "lake") as con:
        try:
            run = run or newest_run(con)
            findings = diagnose(con, run)
        except duckdb.Error as error:
            raise LakeError(ask.of_another_version(home / "lake", error)) from None
    if form == "json":
        click.echo(json.dumps({"run": run, "findings": [finding.as_dict() for finding in findings]}, indent=1))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(f"run {run}: {len(findings) or 'nothing'} found"))
    for found in findings:
        asked = f"lightning-flows sql {_quoted(found.evidence)} --home {shlex.quote(str(home))}"
        console.print()
        console.print(Text(found.severity, _STYLES[found.severity]), Text(found.where))
        console.print(Text(f"  {found.what}"))
        console.print(Text(f"  {found.finds} {found.remedy}", "dim"))
        console.print(Text(f"  {asked}", "cyan"))


def _quoted(text: str) -> str:
    """Quote a text for a shell.

    SQL is full of single quotes, so the text is in double ones where nothing in it would mean anything there.
    """
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
