"""A finetuning's epoch: one that rolls nothing out and is made of rollouts that other epochs ran.

Its manifest names them (`sources`, `planned`) and the range of the spool they lie in, so all that works on an epoch works
on it: the SQL, training, the record, an evaluation, and further epochs of the run.
"""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa

from lightning_core.config import FinetuneSettings, SettingsError
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.lake import sql
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError, Source, stage_key


def open_finetune(run: Run, number: int, versions: dict[str, str]) -> Epoch:
    """Open epoch `number` of the run, made of what `settings.finetune` chooses, with the table `finetune_rollouts`.

    `versions`: policy → what training goes on from. Raises SettingsError where nothing is chosen, LakeError where the
    run is in the middle of an epoch of its own.
    """
    lake, wanted, before = run.lake, run.settings.finetune, run.known(number)
    if before is not None:
        require_others_rollouts(before, "the finetuning")
    chosen = _chosen(lake, wanted, run.run)
    opened = run.open(number, "train", versions)
    epoch = opened.manifest
    epoch.sources = [Source(run=m.run, epoch=m.epoch) for m in chosen]
    epoch.opened_offset = min(m.opened_offset for m in chosen)
    epoch.sealed_offset = max(m.sealed_offset or 0 for m in chosen)
    rollouts = _rollouts(lake, wanted, chosen, epoch)
    taken = [row["rollout_id"] for row in rollouts.to_pylist() if row["left_out"] is None]
    if not taken:
        raise SettingsError(
            f"finetune: none of the {rollouts.num_rows} rollouts of {_names(chosen)} began since {wanted.since} and before "
            f"{wanted.until}; widen the window"
        )
    epoch.planned = taken
    key = stage_key(taken, epoch.span_range, rollouts.num_rows)
    lake.put_table(epoch, "finetune_rollouts", rollouts, key)
    opened.save()
    return opened


def require_own_rollouts(epoch: EpochManifest) -> None:
    """Raise LakeError for a finetuning, which has no rollouts to run."""
    if epoch.sources:
        raise LakeError(
            f"epoch {epoch.epoch} of run {epoch.run!r} has rollouts that others ran; `lightning-flows finetune` (or "
            "`learn`) goes on with it, or give the settings another `run`"
        )


def require_others_rollouts(epoch: EpochManifest, what: str) -> None:
    """Raise LakeError for an epoch that began to roll out itself, which `what` would make of others' rollouts."""
    if epoch.stages and not epoch.sources:
        raise LakeError(
            f"epoch {epoch.epoch} of run {epoch.run!r} rolls out itself and is not finished; finish it (`train-epoch`), "
            f"or give {what} another `run`"
        )


def _chosen(lake: Lake, wanted: FinetuneSettings, run: str) -> list[EpochManifest]:
    runs = wanted.runs or [run]
    # Not from a finetuning, whose rollouts are others'; what `learn` took from production is its own.
    own = [m for m in lake.manifests.epochs(mode="train") if m.scope == [(m.run, m.epoch, m.mode)]]
    known = [m for m in own if m.sealed_offset is not None]
    chosen = [m for m in known if m.run in runs and (wanted.epochs is None or m.epoch in wanted.epochs)]
    missing = [name for name in runs if name not in {m.run for m in chosen}]
    if missing or not chosen:
        asked = f"run {missing[0]!r} in {lake.root.parent} has rolled out no epoch"
        asked += f" among {wanted.epochs}" if wanted.epochs is not None else ""
        raise SettingsError(f"finetune: {asked}; rolled out are: {_names(known) or 'none'}")
    return chosen


def _rollouts(lake: Lake, wanted: FinetuneSettings, chosen: list[EpochManifest], epoch: EpochManifest) -> pa.Table:
    with lake.connect((epoch.opened_offset, None)) as con:
        con.execute(
            "CREATE TABLE chosen_epochs (run VARCHAR, epoch BIGINT, opened_offset BIGINT, sealed_offset BIGINT)"
        )
        rows = [(m.run, m.epoch, m.opened_offset, m.sealed_offset) for m in chosen]
        con.executemany("INSERT INTO chosen_epochs VALUES (?, ?, ?, ?)", rows)
        planned = [rollout for m in chosen for rollout in m.planned]
        con.register("chosen_plans", pa.table({"rollout_id": pa.array(planned, pa.string())}))
        con.execute(
            "CREATE TABLE time_window AS SELECT ?::BIGINT AS since_ns, ?::BIGINT AS until_ns",
            [ns_of(wanted.since), ns_of(wanted.until)],
        )
        sql.create(con, "finetune/finetune_rollouts")
        return con.sql("FROM finetune_rollouts").to_arrow_table()


def _names(epochs: list[EpochManifest]) -> str:
    return ", ".join(f"{m.run} {m.epoch}" for m in epochs)


def ns_of(moment: datetime | None) -> int | None:
    """Return a time as ns since 1970; one without an offset is in the local time of the machine."""
    return None if moment is None else int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
