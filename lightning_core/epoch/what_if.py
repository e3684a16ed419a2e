"""What other settings would have made of a run: its recorded rollouts, derived again in a home beside, and the difference.

The home beside, `what-if/NAME` in the run's home, has links to the run's span files and policies, and its manifests without their tables.
What is derived or graded there is in no view of the run's own lake; `lightning-flows sql` and `ui` open it with `--home`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.patterns import settle
from lightning_core.files import write_atomic
from lightning_core.lake import catalog, sql

RESULT = "what-if.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class WhatIf:
    """The difference between a run as it was derived and as it would have been; rows of the files of `sql/what_if`."""

    run: str
    name: str
    changed: list[str]  # as they were given: KEY=VALUE
    epochs: list[Row]
    agents: list[Row]
    tasks: list[Row]


def beside(settings: Settings, name: str) -> Settings:
    """Make the home beside anew; return the settings with it as their home. Raises SettingsError where no training epoch is derived yet."""
    run = Run(settings)
    derived = [m for m in run.lake.manifests.epochs(run.run) if m.sealed_offset is not None]
    if not any(m.mode == "train" and "sequences" in m.tables for m in derived):
        raise SettingsError(f"run {run.run!r} in {run.home} has no training epoch that is derived; run one first")
    home = run.home.absolute() / "what-if" / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / "policies").symlink_to(run.home.absolute() / "policies")
    other = Run(settings.model_copy(update={"home": home}))
    spans = run.lake.manifests.spans()
    for file in spans.files:
        there = other.lake.root / file.path
        there.parent.mkdir(parents=True, exist_ok=True)
        _link(run.lake.root / file.path, there)
    other.lake.manifests.put_spans(spans.model_copy(update={"retired": []}))
    for manifest in derived:
        other.lake.manifests.put_epoch(manifest.model_copy(update={"tables": {}, "stages": {}, "patterns": {}}))
        if manifest.mode == "train":
            settle(other.at(other.lake.manifests.epoch(run.run, manifest.epoch, "train") or manifest))
    return other.settings


def compare(settings: Settings, home: Path, name: str, changed: list[str]) -> WhatIf:
    """Compare the run with what was derived in the home beside, and keep the result there."""
    with duckdb.connect() as con:
        for side, root in (("before", settings.home / "lake"), ("after", home / "lake")):
            con.register(f"pushed_{side}", _pushed(root, settings.run))
        sql.create(con, "what_if/moved")
        found = WhatIf(
            settings.run, name, changed, **{part: _rows(con, part) for part in ("epochs", "agents", "tasks")}
        )
    write_atomic(home / RESULT, json.dumps(asdict(found), indent=1).encode())
    return found


def kept(home: Path, run: str) -> list[WhatIf]:
    """The results that are kept in a run's home, by name."""
    found = []
    for file in sorted((home / "what-if").glob(f"*/{RESULT}")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # half removed, or of another version
            found.append(WhatIf(**json.loads(file.read_bytes())))
    return [one for one in found if one.run == run]


def _pushed(root: Path, run: str) -> pa.Table:
    with catalog.connect(root) as con:
        return con.sql(sql.text("what_if/pushed"), params={"run": run}).to_arrow_table()


def _rows(con: duckdb.DuckDBPyConnection, part: str) -> list[Row]:
    relation = con.sql(sql.text(f"what_if/{part}"))
    return sql.rows(relation)


def _link(file: Path, there: Path) -> None:
    """A hard link, so that it stays where compaction removes the file; a copy on another disk."""
    try:
        os.link(file, there)
    except OSError:
        shutil.copyfile(file, there)
