"""Rollouts of production agents become an epoch's, by a root span each."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from lightning_core import names
from lightning_core.client import STATUS_ERROR, STATUS_OK, SpanData, new_span_id, new_trace_id
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.plan import PlannedRollout, Task, attempt_of
from lightning_core.epoch.production import Choice, Chosen, take
from lightning_core.epoch.stages import run_stage
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.manifest import stage_key
from lightning_core.loading import code_digest
from lightning_flows.tasks.ingest import ingest_spans, reward
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step


@step("choose rollouts of production")
def adopt(epoch: Epoch, choice: Choice) -> dict[str, Any]:
    """Choose rollouts, give each its root span, grade them, seal the epoch; returns counts.

    A try that was killed goes on with what it had chosen. Raises SettingsError where nothing is left to learn from.
    """
    key = stage_key(choice, epoch.manifest.versions)

    def rollouts() -> dict[str, Any]:
        ingest_spans(epoch)
        chosen = take(epoch, choice, time.time_ns())
        _post_roots(epoch, chosen)
        epoch.manifest.sealed_offset = ingest_spans(epoch)
        logger().info("%d rollouts are learned from; left out: %s", len(chosen.rollouts), dict(chosen.left_out))
        return {"rollouts": len(chosen.rollouts), "left_out": dict(chosen.left_out)}

    counts = run_stage(epoch, "rollouts", key, rollouts)
    graded = stage_key(key, code_digest(epoch.settings.reward.grader))
    return counts | run_stage(epoch, "rewards", graded, partial(reward, epoch))


def _post_roots(epoch: Epoch, chosen: Chosen) -> None:
    gateway = GatewayHandle.find(epoch.home)
    assert gateway is not None, "the epoch's services hold a gateway open"
    progress = Progress("rollouts", len(chosen.rollouts), epoch.named)

    def post(row: dict[str, Any]) -> None:
        planned = PlannedRollout(row["rollout_id"], row["group_id"], Task(row["task_id"] or row["group_id"], {}))
        spec = attempt_of(epoch, planned, row["attempt_id"], gateway)
        root = SpanData(names.SPAN_ROLLOUT, row["start_ns"], row["end_ns"], new_trace_id(), new_span_id())
        root.attributes = spec.labels() | {
            names.TASK: row["task"],
            names.OUTPUT: json.dumps(row["reply"]) if row["output"] is None else row["output"],
            names.STATUS: row["outcome"],
            names.ERROR: row["error"],
        }
        root.status = STATUS_OK if row["outcome"] == "ok" else STATUS_ERROR
        root.status_message = row["error"] or ""
        gateway.store([(spec.rollout_id, spec.attempt_id, [root])])
        progress.add()

    with ThreadPoolExecutor(8, thread_name_prefix="adopt") as threads:
        list(threads.map(post, [row for row in chosen.rollouts if not row["adopted"]]))
