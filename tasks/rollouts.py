"""Rollouts of an epoch until its spans are sealed: roll out what is missing, decode, seal, grade."""

from __future__ import annotations

import secrets
from collections import Counter
from concurrent.futures import Future
from functools import partial
from typing import Any

from prefect.task_runners import TaskRunner

from lightning_core.agents.shared import close_runners
from lightning_core.epoch.decoding import decode_spool
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.patterns import settle
from lightning_core.epoch.plan import PlannedRollout, chosen, missing_groups, spare_groups
from lightning_core.epoch.prompts import with_prompts
from lightning_core.epoch.resume import finished, finished_with
from lightning_core.epoch.stage_keys import rewards_key, rollouts_key
from lightning_core.epoch.stages import run_stage
from lightning_core.errors import LightningError
from lightning_core.gateway.handle import GatewayError, GatewayHandle
from lightning_core.lake.redact import Redaction
from lightning_core.policies.vllm import VllmServer
from lightning_flows.tasks.cluster import WorkerLost, outcome, settled, submit, task_runner
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.ingest import ingest_spans, reward
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.publish import publish_lake
from lightning_flows.tasks.shard import rollout_shard, split

_DECODE_EVERY_S = 10.0  # so that the page, which asks every 4 s, has a span within 20 s
_LOOKS_WITHOUT_GATEWAY = 3  # a supervised one is back by the second


class RolloutsFailed(LightningError):
    """Too few rollouts could be run; finished ones stay, and the next try goes on from there."""


def roll_out(epoch: Epoch, planned: list[PlannedRollout]) -> dict[str, Any]:
    """Run the planned rollouts that have no result yet, grade them, and seal the epoch; called inside a flow.

    Returns counts: rollouts by status and rewards graded. What was finished with the same keys is left alone; finished
    rollouts of other settings (another agent, other tasks, other sampling) are set aside, and that is logged.
    """
    manifest = epoch.manifest
    planned = with_prompts(epoch, planned)
    manifest.planned = [r.rollout_id for r in chosen(epoch, planned)]
    manifest.draw = planned[0].draw
    graded = rewards_key(epoch, planned)
    while True:
        done = run_stage(epoch, "rollouts", rollouts_key(epoch, planned), partial(_finish, epoch, planned))
        grades = run_stage(epoch, "rewards", graded, partial(reward, epoch))
        if not (more := _to_replace(epoch, planned)):
            break
        manifest.replaced += more
        del manifest.stages["rollouts"], manifest.stages["rewards"]
        epoch.save()
    if epoch.mode == "train":  # an evaluation ends, and is published, within seconds
        publish_lake(epoch.lake, epoch.settings.lake)
    return done | {"grades": grades}


def _finish(epoch: Epoch, planned: list[PlannedRollout]) -> dict[str, Any]:
    """Run what has no result yet of the plan, and seal the epoch."""
    manifest, logs = epoch.manifest, epoch.home / "logs"
    manifest.sealed_offset = None
    ingest_spans(epoch)
    done = finished_with(epoch, rollouts_key(epoch, planned))
    planned = chosen(epoch, planned)
    manifest.planned = [r.rollout_id for r in planned]
    missing = [r for r in planned if r.rollout_id not in done]
    if done:
        logger().info("%d of %d rollouts are finished already", len(planned) - len(missing), len(planned))
    counts = _roll_out(epoch, missing)
    manifest.sealed_offset = ingest_spans(epoch)
    unfinished = len(planned) - len(finished(epoch) & {r.rollout_id for r in planned})
    if unfinished and (gone := _gone(epoch)):
        raise RolloutsFailed(
            f"{gone} ended while rollouts ran, and {unfinished} of {len(planned)} have no result; see {logs} "
            "and run the epoch again: it is started anew, and finished rollouts are kept"
        )
    if unfinished > len(planned) // 2:
        first = next(iter(counts["errors"]), "no attempt says why")
        raise RolloutsFailed(
            f"{unfinished} of {len(planned)} rollouts of {epoch.named} failed for reasons of the "
            f"infrastructure ({first}); see {logs} and run the epoch again: finished ones are kept"
        )
    if unfinished:
        logger().warning("%d rollouts have no result (infrastructure); the epoch goes on without them", unfinished)
    return {"planned": len(planned), "unfinished": unfinished, "replaced": manifest.replaced, **counts}


def _to_replace(epoch: Epoch, planned: list[PlannedRollout]) -> int:
    """Return how many further groups to roll out; derives the epoch's rollouts to see which groups teach nothing."""
    if (spare := spare_groups(epoch, planned)) == 0:
        return 0
    settle(epoch)
    derive_tables(epoch)
    teaching, missing = missing_groups(epoch, spare)
    logger().info(
        "%s: %d groups teach, of %d wanted; %d further tasks are rolled out, of %d",
        epoch.named,
        teaching,
        epoch.settings.rollout.tasks_per_epoch,
        missing,
        spare,
    )
    return missing


def _gone(epoch: Epoch) -> str | None:
    """Return which of the services that the rollouts need is gone, if any."""
    if GatewayHandle.find(epoch.home) is None:
        return "the gateway"
    return "vLLM" if VllmServer.find(epoch.home) is None else None


def _roll_out(epoch: Epoch, missing: list[PlannedRollout]) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    log = logger()
    gateway = GatewayHandle.find(epoch.home)
    before = gateway.health() if gateway is not None else {}
    with task_runner(epoch.settings.cluster) as runner:
        while missing:
            lost = _round(epoch, runner, missing, statuses, errors)
            if not lost:
                break
            ingest_spans(epoch)
            done = finished(epoch)
            still = [r for r in missing if r.rollout_id not in done]
            if len(still) == len(missing):
                raise RolloutsFailed(f"no worker of the cluster finishes a rollout: {lost}; see its logs")
            log.warning("workers were lost (%s); %d rollouts are begun again", lost, len(still))
            missing = still
    _log_what_was_refused(gateway, before)
    if statuses:
        log.info("%s: rollouts %s", epoch.named, dict(statuses))
    for error, count in errors.most_common(5):
        log.warning("%d attempts: %s", count, error)
    return {"statuses": dict(statuses), "errors": dict(errors.most_common(5))}


def _round(
    epoch: Epoch,
    runner: TaskRunner[Any],
    rollouts: list[PlannedRollout],
    statuses: Counter[str],
    errors: Counter[str],
) -> str:
    """Run these rollouts once, and count what came of them; returns what became of workers that were lost, or ""."""
    gateway = GatewayHandle.find(epoch.home)
    if gateway is None:
        raise LightningError(f"no gateway runs for {epoch.home}; start the flow, or `lightning-flows serve`, first")
    round_id = None
    if epoch.settings.cluster.engine != "threads":
        round_id = secrets.token_hex(8)
        gateway.begin_round(f"{epoch.run}/{epoch.mode}/{epoch.number}", round_id)
    rollout = epoch.settings.rollout
    shards = split(rollouts, min(rollout.shards, rollout.concurrency))
    shared = {"epoch": epoch, "gateway": gateway, "of": len(shards), "total": len(rollouts), "round_id": round_id}
    futures = [
        submit(runner, rollout_shard, rollouts=shard, number=number, **shared) for number, shard in enumerate(shards, 1)
    ]
    _wait(epoch, futures)
    lost = ""
    for future in futures:
        try:
            result = outcome(future)
        except WorkerLost as error:
            lost = str(error)
            continue
        statuses.update(result["statuses"])
        errors.update(result["errors"])
        if result["claimed_before"]:
            lost = f"{result['claimed_before']} rollouts of a shard had been begun by another worker"
    return lost


def _log_what_was_refused(gateway: GatewayHandle | None, before: dict[str, Any]) -> None:
    """Warn of spans that the gateway refused while rollouts ran: agents' exporters give up in the end, and quietly."""
    if gateway is None:
        return
    try:
        now = gateway.health()
    except GatewayError:  # it is gone, and whoever counts the unfinished says so
        return
    if (refused := now["refused_otlp"] - before.get("refused_otlp", 0)) > 0:
        logger().warning(
            "%d requests of spans were answered 503 (the spool or the disk was full): exporters retry for a while, then spans are lost; "
            "see gateway.spool_max_gb",
            refused,
        )
    if (rejected := now["rejected_spans"] - before.get("rejected_spans", 0)) > 0:
        logger().warning("%d spans sent as JSON cannot be read; they are set aside in spool/rejected", rejected)


def _wait(epoch: Epoch, futures: list[Future[Any]]) -> None:
    """Wait for the shards and decode meanwhile: analysts see the epoch as it goes, and the spool stays short.

    Where the gateway is gone, and nobody starts it again, no rollout is begun any more: each would wait for it.
    """
    redaction = Redaction.of(epoch.settings.lake)
    gone = 0
    try:
        while not settled(futures, _DECODE_EVERY_S):
            decode_spool(epoch.lake, redaction)
            gone = gone + 1 if GatewayHandle.find(epoch.home) is None else 0
            if gone == _LOOKS_WITHOUT_GATEWAY:
                close_runners()
    except BaseException:
        close_runners()  # or Ctrl-C would wait for every attempt still to come
        raise
