"""One policy's training of one epoch: sequences in the lake → a job for the trainer → a published version."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from lightning_core.config import PolicySettings
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import sql
from lightning_core.lake.manifest import stage_key
from lightning_core.policies.probe import Probe
from lightning_core.policies.sharing import takes_turns
from lightning_core.policies.store import BASE_VERSION, Lineage, PolicyStore, PublishConflict
from lightning_core.policies.vllm_command import dtype
from lightning_core.training.checkpoint import clear
from lightning_core.training.job import Job
from lightning_core.training.launch import train
from lightning_core.training.memory import sized
from lightning_core.training.state import name_state
from lightning_core.training.token_rows import token_scores, training_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """The outcome of training a policy, as the manifest keeps it, served from now on; `write` returns when it is on the disk."""

    output: dict[str, Any]
    write: Callable[[], None] = lambda: None


def train_version(
    epoch: Epoch,
    policy: PolicySettings,
    base_model: Path,
    on_progress: Callable[[dict[str, Any]], None],
    device: str | None = None,
) -> Made:
    """Train `policy` on its sequences of the epoch and publish the result.

    Returns `{"version", "metrics", "sequences"}` (their digest); with nothing to train on the version is the parent and `skipped` says why.
    Raises training.launch.TrainingFailed, and StoreError where the parent is damaged or the result no child of it; nothing is published
    then. The version can be served at once. Until `write` was called it may not outlive the machine, and the epoch does not count as trained.
    """
    settings, number, made_of = epoch.settings, epoch.number, epoch.manifest.tables
    # A table is put whole, and policies may be trained side by side.
    tables = {f"training_rows {policy.name}": training_rows, f"token_scores {policy.name}": token_scores}
    for table in tables:
        made_of.pop(table, None)
    parent = epoch.manifest.versions[policy.name]
    state = epoch.home / "training" / epoch.run / policy.name
    state.mkdir(parents=True, exist_ok=True)
    sequences = state / f"sequences-{number:04d}.parquet"
    if not write_sequences(epoch, policy.name, sequences):
        sequences.unlink()
        return Made({"version": parent, "metrics": {}, "skipped": _why_nothing(epoch, policy.name)})
    store = epoch.policies[policy.name]
    calls = state / f"calls-{number:04d}.parquet" if policy.made_algorithm.weigh() is not None else None
    if calls is not None:
        write_sequence_calls(epoch, policy.name, calls)
    output = state / f"output-{number:04d}"
    fresh_adapter = policy.lora is not None and parent == BASE_VERSION
    made = store.manifest(parent)
    job = Job(
        run=epoch.run,
        epoch=number,
        policy=policy.name,
        policy_settings=sized(policy, base_model, device, state / "micro-batches.json"),
        seed=settings.seed,
        epochs=settings.epochs,
        weights=None if fresh_adapter else store.checked(parent),
        made_in=made.epoch if made.run == epoch.run else None,
        version=parent,
        sampled_in=dtype(settings.vllm),
        head_in_float32=settings.vllm.head_in_float32,
        base_model=base_model,
        sequences=sequences,
        calls=calls,
        output=output,
        state=state / "optimizer",
        progress=state / f"progress-{number:04d}.jsonl",
        device=device,
        beside=min(max(len(settings.training_devices), 1), len(settings.policies)),
    )
    trained = train(
        job, on_progress, epoch.home / "logs" / f"train-{policy.name}-{number:04d}.log", stays=not takes_turns(settings)
    )
    metrics = trained.result
    metrics |= {f"left_out/{reason}": rows for reason, rows in metrics["left_out"].items()}
    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    probe = Probe.model_validate(metrics["probe"]) if metrics.get("probe") else None
    lineage = Lineage(
        run=epoch.run,
        epoch=number,
        kind="lora" if policy.lora else "full",
        base_model=policy.model,
        parent=parent,
        settings_digest=stage_key(policy.model_dump(mode="json", exclude_defaults=True)),
        sequences=made_of["sequences"].path,
        sequences_digest=made_of["sequences"].digest,
        metrics=numbers,
        probe=probe and probe.measured(made.probe, numbers, job.sampled_in),
    )
    (output / "training.json").unlink()  # seconds and memory differ each time; the lineage has the metrics
    version = _publish(store, output, lineage)
    shutil.rmtree(output, ignore_errors=True)

    def write() -> None:
        trained.kept()
        store.sync(version)
        name_state(job.state, number, version)
        for table, read in tables.items():
            rows = read(job.state)
            if rows is not None:
                epoch.lake.put_table(epoch.manifest, table, rows, version)
        clear(job.state)
        sequences.unlink()
        if calls is not None:
            calls.unlink()

    return Made({"version": version, "metrics": numbers, "sequences": made_of["sequences"].digest}, write)


def _publish(store: PolicyStore, output: Path, lineage: Lineage) -> str:
    """Publish, under the next number where another run took one meanwhile: what was trained is not lost by that."""
    while True:
        try:
            return store.publish(output, lineage, synced=False)
        except PublishConflict as error:
            logger.info("%s", error)


def write_sequences(epoch: Epoch, policy: str, target: Path) -> int:
    """Write the policy's sequences of the epoch to a file of their own; returns how many."""
    table = pq.read_table(epoch.table("sequences"), filters=[("policy", "=", policy)])
    pq.write_table(table, target, compression="zstd")
    return int(table.num_rows)


def write_sequence_calls(epoch: Epoch, policy: str, target: Path) -> None:
    """Write the rows of sql/tokens/sequence_calls.sql for a policy's sequences of the epoch."""
    reward = epoch.settings.reward
    with duckdb.connect() as con:
        for table in ("sequences", "merges", "call_returns"):
            con.read_parquet(epoch.table(table)).filter(f"policy = '{policy}'").create_view(table)
        con.execute(
            "CREATE TABLE reward_settings AS SELECT $1::VARCHAR AS assign, $2::DOUBLE AS gamma",
            [reward.assign, reward.gamma],
        )
        con.sql(sql.text("tokens/sequence_calls")).write_parquet(str(target), compression="zstd")


def _why_nothing(epoch: Epoch, policy: str) -> str:
    with duckdb.connect() as con:
        reasons = con.execute(
            "SELECT reason, count(DISTINCT (attempt_id, span_id, call_id)) FROM read_parquet(?) WHERE policy IS NOT DISTINCT FROM ? GROUP BY ALL ORDER BY 2 DESC",
            [epoch.table("exclusions"), policy],
        ).fetchall()
    why = ", ".join(f"{n} calls {reason}" for reason, n in reasons) or "no call went to it"
    return f"nothing to train on in epoch {epoch.number}: {why}; the version stays"
