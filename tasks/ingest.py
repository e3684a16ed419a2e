"""From the spool to the lake, and rewards for attempts whose agent gives none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lightning_core.agents.grading import grade
from lightning_core.config import ClusterSettings, LakeSettings, Settings
from lightning_core.epoch.decoding import decode_spool
from lightning_core.epoch.derive import attempts
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Batch, Decode, Decoded, Ingested, Lake, decode_batch
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.redact import Redaction
from lightning_flows.tasks.cluster import in_order, task_runner
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step


@step("decode spans")
def ingest_spans(settings: Settings) -> int:
    """Decode what the server has made durable; returns the spool offset that is decoded now."""
    return _decode(settings.home, settings.lake, settings.cluster).decoded_offset


@step("decode spans")
def ingest_home(home: Path, rules: LakeSettings) -> dict[str, int]:
    """The same for a home without a run; returns counts of spans."""
    done = _decode(home, rules)
    return {"spans": done.spans, "rejected": done.rejected, "retries": done.retries}


@step("decode from {first}")
def decode_range(first: int, batch: Batch) -> Decoded:
    """Spans of a part of the spool, from offset `first` on, which is handed over whole: the spool is on the server's machine."""
    return decode_batch(batch)


def _decode(home: Path, rules: LakeSettings, cluster: ClusterSettings | None = None) -> Ingested:
    spread = None if cluster is None or cluster.engine == "threads" else _on(cluster)
    done = decode_spool(home, Redaction.of(rules), decode=spread)
    if done.rejected:
        logger().warning("%d spans could not be decoded; see %s", done.rejected, home / "spool" / "rejected")
    return done


def _on(cluster: ClusterSettings) -> Decode:
    """Decodes on a cluster what is more than one batch."""

    def decode(batches: Iterator[Batch]) -> Iterator[Decoded]:
        first = list(islice(batches, 2))
        if len(first) < 2:
            yield from map(decode_batch, first)
            return
        with task_runner(cluster) as runner:
            each = ({"first": batch[0][0], "batch": batch} for batch in chain(first, batches))
            yield from in_order(runner, decode_range, each)

    return decode


@step("grade {epoch.mode} {epoch.epoch}")
def grade_rollouts(settings: Settings, epoch: EpochManifest) -> dict[str, Any]:
    """Run `reward.grader` over the attempts of the epoch that it has not graded yet; rewards are durable on return."""
    grader = settings.reward.grader
    if grader is None:
        return {}
    server = GatewayHandle.find(settings.home)
    assert server is not None, "the epoch's services hold a server open"
    lake = Lake(settings.home)
    progress = cache(partial(Progress, f"{epoch.mode} {epoch.epoch} grading"))

    def on_progress(done: int, total: int) -> None:
        progress(total).at(done)

    with attempts(lake, epoch) as con:
        grades = grade(grader, con, server.store, on_progress)
    if grades.invalid:
        logger().error(
            "%s: %d of %d rewards cannot be used; first: %s", grader, grades.invalid, grades.graded, grades.first_error
        )
    return {"graded": grades.graded, "invalid": grades.invalid, "first_error": grades.first_error}
