"""`lightning-flows policies`: versions by hand. No Prefect in here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lightning_core.policies.removed import removals
from lightning_core.policies.store import PolicyStore, StoreError
from lightning_flows.flows.command import group_home_option, home_of
from lightning_flows.flows.tables import as_table, cell, report_console

_home_option = group_home_option("policies")
_tracking_option = click.option("--tracking", metavar="URI", help="MLflow's address; default: mlflow.db in the home.")
_MISSING = "-"
_TEXTS, _NUMBERS = ("policy", "version", "parent", "run", "is", "ok"), ("epoch", "right", "MB")


@click.group(invoke_without_command=True)
@_home_option
@click.option("--policy", "wanted", help="Only this policy.")
@click.option("--verify", is_flag=True, help="Hash every file again, instead of looking at names, sizes and headers.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def policies(context: click.Context, home: Path | None, wanted: str | None, verify: bool, form: str) -> None:
    """Manage the versions of the policies; without a command: list them."""
    context.obj = home
    if context.invoked_subcommand is not None:
        return
    rows = list(_rows(home_of(None), wanted, verify))
    if form == "json":
        click.echo(json.dumps(rows, indent=1))
        return
    table = as_table(map(_cells, rows), f"policies in {home_of(None)}", "right: share of the held-out tasks", _TEXTS)
    report_console().print(table)
    for name in dict.fromkeys(row["policy"] for row in rows):
        if gone := removals(home_of(None) / "policies" / name):
            click.echo(f"{name}: {len(gone)} versions were removed, as nothing needed them: {', '.join(sorted(gone))}")
    for row in rows:
        if row["problem"] is not None:
            click.echo(f"{row['policy']} {row['version']}: {row['problem']}", err=True)


@policies.command()
@click.argument("policy")
@click.argument("version")
@_home_option
def pin(policy: str, version: str, home: Path | None) -> None:
    """Pin VERSION of POLICY, so that it is never removed."""
    _store(home, policy).pin(version)


@policies.command()
@click.argument("policy")
@click.argument("version")
@_home_option
def unpin(policy: str, version: str, home: Path | None) -> None:
    """Remove the pin of VERSION of POLICY."""
    _store(home, policy).pin(version, pinned=False)


@policies.command()
@click.argument("policy")
@click.argument("version")
@_home_option
def use(policy: str, version: str, home: Path | None) -> None:
    """Make VERSION of POLICY `current`: vLLM starts with it. A run that continues deploys its own versions again."""
    store = _store(home, policy)
    store.verify(version)
    store.set_current(version)


@policies.command()
@_home_option
@click.option("--policy", "wanted", help="Only this policy.")
@click.option(
    "--keep-every", type=click.IntRange(min=1), metavar="K", default=10, show_default=True, help="Every K-th stays."
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and why the rest stays; remove nothing.")
@_tracking_option
def prune(home: Path | None, wanted: str | None, keep_every: int, dry_run: bool, tracking: str | None) -> None:
    """Remove versions that nothing needs, as a run does after every epoch; docs/policies.md lists what stays."""
    from lightning_core.policies.prune import policies as names
    from lightning_core.tracking.prune import prune_everywhere

    home = home_of(home)
    uri = _tracking(tracking, home) if tracking or (home / "mlflow.db").is_file() else None
    for name in [wanted] if wanted else names(home):
        by = "`lightning-flows policies prune`"
        done = prune_everywhere(home, name, keep_every, by=by, tracking=uri, dry_run=dry_run)
        verb = "would go" if dry_run else "removed"
        click.echo(f"{name}: {len(done.gone)} versions {verb}, {done.bytes / 1e6:,.1f} MB; {len(done.kept)} stay")
        for version, size in done.gone.items():
            click.echo(f"  {version}  {verb}, {size / 1e6:,.1f} MB")
        for version, reasons in done.kept.items() if dry_run else ():
            click.echo(f"  {version}  stays: {', '.join(reasons)}")


@policies.command()
@click.argument("model")
@click.argument("version")
@click.option("--into", type=click.Path(path_type=Path), required=True, help="VERSION becomes a folder in this one.")
@_home_option
@_tracking_option
def fetch(model: str, version: str, into: Path, home: Path | None, tracking: str | None) -> None:
    """Fetch VERSION (`v0007`, `champion`, `current`) of MODEL (`<run>.<policy>`) from MLflow's registry, and verify it."""
    from lightning_core.tracking.registry import load

    click.echo(load(_tracking(tracking, home_of(home)), model, version, into))


@policies.command()
@click.argument("policy")
@click.argument("version")
@click.option("--into", type=click.Path(path_type=Path), required=True, help="The folder to write; it must not exist.")
@click.option("--merged", is_flag=True, help="Write full weights also for an adapter (its base model is loaded).")
@click.option(
    "--models", type=click.Path(path_type=Path), help="Folder `models` of the settings; default: the user's cache."
)
@_home_option
def export(policy: str, version: str, into: Path, merged: bool, models: Path | None, home: Path | None) -> None:
    """Write VERSION of POLICY as a folder for transformers, peft or vLLM."""
    from lightning_core.training.export import export as write

    click.echo(write(_store(home, policy), version, into, merged=merged, models=models, on_progress=click.echo))


def _tracking(uri: str | None, home: Path) -> str:
    file = home / "mlflow.db"
    if uri is None and not file.is_file():
        raise StoreError(f"no {file}; give MLflow's address with --tracking, or the folder of the runs with --home")
    return uri or f"sqlite:///{file.resolve()}"


def _rows(home: Path, wanted: str | None, verify: bool) -> Iterator[dict[str, Any]]:
    from lightning_core.policies.prune import policies as names

    for name in [wanted] if wanted else names(home):
        store = _store(home, name)
        marks = {"current": store.current(), "best": store.best()}
        for mark, version in marks.items():
            if version is not None and version not in store.versions():
                yield _row(name, version, [mark], f"{store.folder / mark} names it, and there is no such version")
        for version in store.versions():
            named = [mark for mark, marked in marks.items() if marked == version]
            named += ["pinned"] if version in store.pinned() else []
            row = _row(name, version, named)
            try:
                manifest = store.manifest(version)
                row |= {
                    "parent": manifest.parent,
                    "run": manifest.run,
                    "epoch": manifest.epoch,
                    "right": manifest.evaluation.right if manifest.evaluation else None,
                    "bytes": manifest.size,
                }
                store.verify(version, hashes=verify)
            except StoreError as error:
                row["problem"] = str(error)
            yield row


def _row(policy: str, version: str, named: list[str], problem: str | None = None) -> dict[str, Any]:
    unknown = {"parent": None, "run": None, "epoch": None, "right": None, "bytes": 0}
    return {"policy": policy, "version": version, **unknown, "is": named, "problem": problem}


def _cells(row: dict[str, Any]) -> dict[str, str]:
    shown = row | {
        "right": cell(row["right"], ".1%") or None,
        "MB": f"{row['bytes'] / 1e6:,.1f}",
        "is": ", ".join(row["is"]),
        "ok": "yes" if row["problem"] is None else "NO",
    }
    return {
        name: _MISSING if shown[name] is None else str(shown[name]) for name in (*_TEXTS[:4], *_NUMBERS, *_TEXTS[4:])
    }


def _store(home: Path | None, policy: str) -> PolicyStore:
    from lightning_core.policies.prune import policies as names

    home = home_of(home)
    if policy not in names(home):
        raise StoreError(f"no policy {policy!r} in {home / 'policies'}; there are {names(home) or 'none'}")
    return PolicyStore(home, policy)
