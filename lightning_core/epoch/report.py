"""Report a run's epochs, from the catalog and the manifests."""

from __future__ import annotations

from typing import Any

from lightning_core.epoch.epoch import Run
from lightning_core.lake import catalog, sql
from lightning_core.lake.lake import Lake


def epoch_rows(run: Run) -> list[dict[str, Any]]:
    """Return one dict per epoch of the run, oldest first; epoch -1 is the evaluation before any training.

    Each has the columns of sql/analysis/epoch_report.sql, and from the manifests: `versions` (policy → the version that
    the epoch trained), `seconds` (stage → seconds; `evaluate` is the evaluation after the epoch, without its record,
    which is written from these rows).
    """
    rows = asked(run.lake, "FROM epoch_report(p_run := $run) ORDER BY epoch", run=run.run)
    epochs = run.lake.manifests.epochs(run.run)
    for row in rows:
        row["versions"], row["seconds"] = {}, {}
        for manifest in epochs:
            if manifest.mode == "train" and manifest.epoch == row["epoch"]:
                row["seconds"] |= {name: stage.seconds for name, stage in manifest.stages.items()}
                row["versions"] |= manifest.ended_with
            elif manifest.mode == "evaluate" and manifest.epoch == row["epoch"] + 1:
                done = [stage.seconds for name, stage in manifest.stages.items() if name != "record"]
                row["seconds"]["evaluate"] = round(sum(done), 3)
                row["versions"] = row["versions"] or manifest.versions
    return rows


def policy_rows(run: Run, epoch: int | None = None) -> list[dict[str, Any]]:
    """Return one dict per epoch (or of one epoch) and policy of the run: rows of sql/views/policy_epochs.sql."""
    question = "FROM policy_epochs WHERE run = $run AND epoch = coalesce($epoch, epoch) ORDER BY epoch, policy"
    return asked(run.lake, question, run=run.run, epoch=epoch)


def run_signals(run: Run) -> dict[tuple[str | None, str], list[tuple[int, float]]]:
    """Return (policy, signal) → (epoch, value) pairs, oldest first: sql/tracking/run_signals.sql."""
    found: dict[tuple[str | None, str], list[tuple[int, float]]] = {}
    for row in asked(run.lake, sql.text("tracking/run_signals"), run=run.run):
        found.setdefault((row["policy"], row["signal"]), []).append((row["epoch"], row["value"]))
    return found


def asked(lake: Lake, question: str, **params: Any) -> list[dict[str, Any]]:
    """Return the rows of a question to the catalog, which is made anew where the lake has changed."""
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        return sql.rows(con.sql(question, params=params))
