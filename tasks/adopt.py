"""Rollouts of production agents become an epoch's, by a root span each."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lightning_core import names
from lightning_core.agents.attempt import AttemptSpec
from lightning_core.client import STATUS_OK, SpanData, new_span_id, new_trace_id, post_spans
from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.production import Choice, Chosen, choose
from lightning_core.epoch.stages import run_stage
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError, Source, stage_key
from lightning_core.loading import grader_digest
from lightning_flows.tasks.ingest import grade_rollouts, ingest_spans
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step


@step("choose rollouts of production")
def adopt(settings: Settings, epoch: EpochManifest, choice: Choice) -> dict[str, Any]:
    """Choose rollouts, give each its root span, grade them, seal the epoch; returns counts.

    A try that was killed goes on with what it had chosen. Raises SettingsError where nothing is left to learn from.
    """
    lake = Lake(settings.home)
    key = stage_key(choice, epoch.versions)

    def work() -> dict[str, Any]:
        if epoch.stages and not epoch.sources:
            raise LakeError(
                f"epoch {epoch.epoch} of run {epoch.run!r} rolls out itself and is not finished; finish it (`train-epoch`), "
                "or give `learn` another `run`"
            )
        ingest_spans(settings)
        chosen = choose(lake, epoch, choice, time.time_ns())
        if not chosen.rollouts:
            told = ", ".join(f"{n} {reason}" for reason, n in chosen.left_out.items()) or "no agent sent any"
            raise SettingsError(f"learn: no rollout is left to learn from ({told})")
        epoch.planned = [row["rollout_id"] for row in chosen.rollouts]
        epoch.sources = [Source(run=epoch.run, epoch=epoch.epoch)]  # its rollouts are not for `train-epoch` to run
        epoch.opened_offset = min(row["first_offset"] for row in chosen.rollouts)
        epoch.sealed_offset = None
        lake.manifests.put_epoch(epoch)
        _post_roots(settings, epoch, chosen)
        epoch.sealed_offset = ingest_spans(settings)
        logger().info("%d rollouts are learned from; left out: %s", len(chosen.rollouts), dict(chosen.left_out))
        return {"rollouts": len(chosen.rollouts), "left_out": dict(chosen.left_out)}

    def reward() -> dict[str, Any]:
        epoch.sealed_offset = None
        ingest_spans(settings)
        grades = grade_rollouts(settings, epoch)
        epoch.sealed_offset = ingest_spans(settings)
        return grades

    counts = run_stage(lake, epoch, "collect", key, work)
    return counts | run_stage(lake, epoch, "grade", stage_key(key, grader_digest(settings.reward.grader)), reward)


def _post_roots(settings: Settings, epoch: EpochManifest, chosen: Chosen) -> None:
    server = GatewayHandle.find(settings.home)
    assert server is not None, "the epoch's services hold a server open"
    progress = Progress(f"learn {epoch.epoch} rollouts", len(chosen.rollouts))

    def post(row: dict[str, Any]) -> None:
        rollout, attempt = row["rollout_id"], row["attempt_id"]
        url, token = server.attempt_url(rollout, attempt), server.mint(rollout, attempt, epoch.mode)
        group = row["group_id"]
        spec = AttemptSpec(epoch.run, epoch.epoch, epoch.mode, rollout, attempt, group, group, {}, url, token)
        root = SpanData(names.SPAN_ROLLOUT, row["start_ns"], row["end_ns"], new_trace_id(), new_span_id())
        root.attributes = spec.labels() | {names.OUTPUT: json.dumps(row["output"]), names.STATUS: "ok"}
        root.status = STATUS_OK
        post_spans(url, {"authorization": f"Bearer {token}"}, spec.resource(), [root])
        progress.add()

    with ThreadPoolExecutor(8, thread_name_prefix="adopt") as threads:
        list(threads.map(post, [row for row in chosen.rollouts if not row["adopted"]]))
