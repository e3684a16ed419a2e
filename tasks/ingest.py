"""From the spool to the lake, and rewards for attempts whose agent gives none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import chain, islice
from typing import Any

from lightning_core.agents.grading import grade
from lightning_core.config import ClusterSettings, LakeSettings
from lightning_core.epoch.decoding import decode_spool, ingest
from lightning_core.epoch.derive import attempts
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Batch, Decode, Decoded, Ingested, Lake, decode_batch
from lightning_core.lake.redact import Redaction
from lightning_flows.tasks.cluster import in_order, task_runner
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step


@step("decode spans")
def ingest_spans(run: Run) -> int:
    """Decode what the gateway has made durable; returns the spool offset that is decoded now."""
    cluster = run.settings.cluster
    spread = None if cluster.engine == "threads" else _on(cluster)
    done = decode_spool(run.lake, Redaction.of(run.settings.lake), decode=spread)
    return _warned(run.lake, done).decoded_offset


@step("decode spans")
def ingest_home(lake: Lake, rules: LakeSettings) -> dict[str, int]:
    """Decode, merge small files and rebuild the catalog of a home without a run; returns counts of spans."""
    done = _warned(lake, ingest(lake, Redaction.of(rules)))
    return {"spans": done.spans, "rejected": done.rejected, "retries": done.retries}


@step("decode from {first}")
def decode_range(first: int, batch: Batch) -> Decoded:
    """Decode a part of the spool, from offset `first` on, handed over whole: the spool is on the gateway's machine."""
    return decode_batch(batch)


def _warned(lake: Lake, done: Ingested) -> Ingested:
    if done.rejected:
        logger().warning("%d spans could not be decoded; see %s", done.rejected, lake.spool / "rejected")
    if done.refused:
        logger().warning(
            "%d spans claim what their senders may not say: it counts for nothing; see view refused_claims",
            done.refused,
        )
    return done


def _on(cluster: ClusterSettings) -> Decode:
    """Return a function that decodes on a cluster what is more than one batch."""

    def decode(batches: Iterator[Batch]) -> Iterator[Decoded]:
        first = list(islice(batches, 2))
        if len(first) < 2:
            yield from map(decode_batch, first)
            return
        with task_runner(cluster) as runner:
            each = ({"first": batch.first, "batch": batch} for batch in chain(first, batches))
            yield from in_order(runner, decode_range, each)

    return decode


@step("rewards of {epoch.named}")
def grade_rollouts(epoch: Epoch, grader: str) -> dict[str, Any]:
    """Run a grader over the attempts of the epoch that it has not graded yet; rewards are durable on return."""
    gateway = GatewayHandle.find(epoch.home)
    assert gateway is not None, "the epoch's services hold a gateway open"
    progress = cache(partial(Progress, "rewards", of=epoch.named))

    def on_progress(done: int, total: int) -> None:
        progress(total).at(done)

    with attempts(epoch) as con:
        grades = grade(grader, con, gateway.store, on_progress)
    if grades.invalid:
        logger().error(
            "%s: %d of %d rewards cannot be used; first: %s", grader, grades.invalid, grades.graded, grades.first_error
        )
    return {"graded": grades.graded, "invalid": grades.invalid, "first_error": grades.first_error}


def reward(epoch: Epoch) -> dict[str, Any]:
    """Grade what this grader has not graded yet, and seal the epoch behind its rewards; returns counts, none without a grader."""
    manifest = epoch.manifest
    if epoch.settings.reward.grader is None:
        return {}
    sealed, manifest.sealed_offset = manifest.sealed_offset, None  # rewards of a try that was killed lie behind it
    ingest_spans(epoch)
    grades = grade_rollouts(epoch, epoch.settings.reward.grader)
    manifest.sealed_offset = max(sealed or 0, ingest_spans(epoch))
    return grades
