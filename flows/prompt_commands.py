"""`lightning-flows prompts`: versions of prompts by hand. No Prefect in here."""

from __future__ import annotations

import difflib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from lightning_core.prompts.store import Mark, PromptError, PromptStore, prompt_names
from lightning_flows.flows.command import group_home_option, home_of
from lightning_flows.flows.tables import as_table, report_console

_home_option = group_home_option("prompts")
_MARKS: tuple[Mark, ...] = ("current", "best", "pinned")
_TEXTS = ("prompt", "version", "parent", "is", "made by", "made at")


@click.group(invoke_without_command=True)
@_home_option
@click.pass_context
def prompts(context: click.Context, home: Path | None) -> None:
    """Manage the versions of the prompts; without a command: list them."""
    context.obj = home
    if context.invoked_subcommand is None:
        context.invoke(list_versions)


@prompts.command("list")
@_home_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_versions(home: Path | None = None, form: str = "table") -> None:
    """List the versions of every prompt."""
    home = home_of(home)
    rows = [row for name in prompt_names(home) for row in _rows(PromptStore(home, name))]
    if form == "json":
        click.echo(json.dumps(rows, indent=1))
        return
    shown = (row | {"is": ", ".join(row["is"])} for row in rows)
    report_console().print(as_table(shown, f"prompts in {home}", "current: what new epochs use", _TEXTS))


@prompts.command()
@click.argument("prompt")
@click.argument("version", required=False)
@click.option("--diff", is_flag=True, help="Print what changed since its parent.")
@_home_option
def show(prompt: str, version: str | None, diff: bool, home: Path | None) -> None:
    """Print the text of VERSION of PROMPT (default: the current one)."""
    store = _store(home, prompt)
    found = store.version(version or _current(store))
    if not diff:
        click.echo(found.text, nl=not found.text.endswith("\n"))
        return
    before = store.version(found.parent).text if found.parent is not None else ""
    lines = before.splitlines(), found.text.splitlines()
    names = f"{prompt} {found.parent or '(nothing)'}", f"{prompt} {found.version} ({found.made_by})"
    click.echo("\n".join(difflib.unified_diff(*lines, *names, lineterm="")))


@prompts.command("set")
@click.argument("prompt")
@click.argument("what", metavar="FILE|VERSION")
@_home_option
def set_current(prompt: str, what: str, home: Path | None) -> None:
    """Make a version of PROMPT of a FILE's text, or take a VERSION that there is: new epochs use it."""
    store = _store(home, prompt)
    if (pinned := store.marked("pinned")) is not None:
        raise PromptError(f"prompt {prompt}: {pinned} is pinned; `lightning-flows prompts unpin {prompt}` first")
    if what not in store.versions():
        try:
            text = Path(what).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            there = ", ".join(store.versions())
            raise PromptError(f"{what}: neither a file of text ({error}) nor a version of {prompt} ({there})") from None
        what = store.add(text, f"by hand, from {what}", store.marked("current"))
    store.put("current", what)
    click.echo(f"{prompt}: {what} is what new epochs use")


@prompts.command()
@click.argument("prompt")
@click.argument("version", required=False)
@_home_option
def pin(prompt: str, version: str | None, home: Path | None) -> None:
    """Pin VERSION of PROMPT (default: the current one): new epochs use it, whatever is edited or found, until `unpin`."""
    store = _store(home, prompt)
    store.put("pinned", version or _current(store))


@prompts.command()
@click.argument("prompt")
@_home_option
def unpin(prompt: str, home: Path | None) -> None:
    """Remove the pin of PROMPT; its current version stays what it is until the next edit or `set`."""
    _store(home, prompt).put("pinned", None)


def _rows(store: PromptStore) -> list[dict[str, Any]]:
    marks = {mark: store.marked(mark) for mark in _MARKS}
    rows = []
    for version in map(store.version, store.versions()):
        rows.append(
            {
                "prompt": store.name,
                "version": version.version,
                "parent": version.parent,
                "is": [mark for mark, marked in marks.items() if marked == version.version],
                "made by": version.made_by,
                "made at": f"{datetime.fromtimestamp(version.created_ns / 1e9, UTC):%Y-%m-%d %H:%M}",
                "characters": len(version.text),
            }
        )
    return rows


def _current(store: PromptStore) -> str:
    return store.marked("current") or store.versions()[0]


def _store(home: Path | None, prompt: str) -> PromptStore:
    home = home_of(home)
    if prompt not in prompt_names(home):
        there = ", ".join(prompt_names(home)) or "none"
        raise PromptError(
            f"no prompt {prompt!r} in {home / 'prompts'}; there are {there}: a run's first epoch makes them"
        )
    return PromptStore(home, prompt)
