"""What other settings would have made of a run: its recorded rollouts, derived again in a home beside, and the difference.

The home beside, `what-if/NAME` in the run's home, has links to the run's span files and policies, and its manifests without their tables.
What is derived or graded there is in no view of the run's own lake; `lightning-flows sql` and `ui` open it with `--home`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.patterns import settle
from lightning_core.epoch.training import write_sequence_calls, write_sequences
from lightning_core.files import link_or_copy, write_atomic
from lightning_core.lake import catalog, sql
from lightning_core.training.token_rows import score_rows
from lightning_core.training.weighing import Scores, run_weighing

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
        link_or_copy(run.lake.root / file.path, there)  # so that it stays where compaction removes the file
    other.lake.manifests.put_spans(spans.model_copy(update={"retired": []}))
    for manifest in derived:
        other.lake.manifests.put_epoch(manifest.model_copy(update={"tables": {}, "stages": {}, "patterns": {}}))
        if manifest.mode == "train":
            settle(other.at(other.lake.manifests.epoch(run.run, manifest.epoch, "train") or manifest))
    return other.settings


def compare(settings: Settings, home: Path, name: str, changed: list[str]) -> WhatIf:
    """Compare the run with what was derived in the home beside, and keep the result there.

    Raises SettingsError where an algorithm would make its advantages of what was never scored in the run.
    """
    _weigh(Run(settings), Run(settings.model_copy(update={"home": home})))
    with duckdb.connect() as con:
        for side, root in (("before", settings.home / "lake"), ("after", home / "lake")):
            con.register(f"pushed_{side}", _pushed(root, settings.run))
        sql.create(con, "what_if/moved")
        parts = {part: sql.rows(con.sql(sql.text(f"what_if/{part}"))) for part in ("epochs", "agents", "tasks")}
    found = WhatIf(settings.run, name, changed, **parts)
    write_atomic(home / RESULT, json.dumps(asdict(found), indent=1).encode())
    return found


def _weigh(run: Run, other: Run) -> None:
    """Make advantages of single tokens anew, of what the run's own training scored, where an algorithm has SQL for that."""
    for policy in other.settings.policies:
        algorithm = policy.made_algorithm
        if algorithm.weigh() is None:
            continue
        for manifest in other.lake.manifests.epochs(other.run, "train"):
            own = run.known(manifest.epoch)
            if own is None or policy.name not in own.trained:
                continue
            table, epoch = f"token_scores {policy.name}", other.at(manifest)
            with tempfile.TemporaryDirectory() as folder:
                sequences, calls = Path(folder) / "sequences.parquet", Path(folder) / "calls.parquet"
                if not write_sequences(epoch, policy.name, sequences):
                    continue
                write_sequence_calls(epoch, policy.name, calls)
                scored = _scored(run.at(own).table(table) if table in own.tables else None, sequences)
                if not scored:
                    raise SettingsError(
                        f"epoch {manifest.epoch}: `algorithm: {policy.algorithm}` makes advantages of what it scores of each token in the "
                        f"training, and of some sequences that policy {policy.name!r} would have the run scored nothing; keep to "
                        "settings that leave its algorithm and the sequences as they are"
                    )
                weighed, _ = run_weighing(algorithm, scored, str(sequences), str(calls))
            other.lake.put_table(manifest, table, score_rows(policy.name, scored, weighed), "what-if")
            epoch.save()
    other.lake.rebuild_catalog()


def _scored(file: str | None, sequences: Path) -> Scores:
    """Return what was scored of these sequences; empty where something is missing."""
    if file is None:
        return {}
    wanted = {
        s["sequence_id"]: sum(s["loss_mask"])
        for s in pq.read_table(sequences, columns=["sequence_id", "loss_mask"]).to_pylist()
    }
    found: Scores = {}
    for row in pq.read_table(file, filters=[("by_sql", "=", False)]).to_pylist():
        if len(row["numbers"]) == wanted.get(row["sequence_id"]):
            found.setdefault(row["name"], {})[row["sequence_id"]] = np.array(row["numbers"], np.float32)
    return found if all(of_name.keys() == wanted.keys() for of_name in found.values()) else {}


def kept(home: Path, run: str) -> list[WhatIf]:
    """Return the results of a run that are kept in its home, ordered by name."""
    found = []
    for file in sorted((home / "what-if").glob(f"*/{RESULT}")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # half removed, or of another version
            found.append(WhatIf(**json.loads(file.read_bytes())))
    return [one for one in found if one.run == run]


def _pushed(root: Path, run: str) -> pa.Table:
    with catalog.connect(root) as con:
        return con.sql(sql.text("what_if/pushed"), params={"run": run}).to_arrow_table()
