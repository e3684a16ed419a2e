"""Rollouts of an epoch until its spans are sealed: roll out what is missing, decode, seal, grade."""

from __future__ import annotations

import secrets
from collections import Counter
from concurrent.futures import Future
from typing import Any

from prefect.task_runners import TaskRunner

from lightning_core.config import Settings
from lightning_core.epoch.decoding import decode_spool
from lightning_core.epoch.plan import PlannedRollout, draw_again
from lightning_core.epoch.stage_keys import rewards_key, rollouts_key
from lightning_core.epoch.stages import begin_anew, run_stage
from lightning_core.errors import LightningError
from lightning_core.gateway.handle import GatewayError, GatewayHandle
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.redact import Redaction
from lightning_core.policies.vllm import VllmServer
from lightning_flows.tasks.cluster import WorkerLost, outcome, settled, submit, task_runner
from lightning_flows.tasks.ingest import grade_rollouts, ingest_spans
from lightning_flows.tasks.progress import logger
from lightning_flows.tasks.rollout import close_runners, rollout_shard, split

_DECODE_EVERY_S = 15.0
_LOOKS_WITHOUT_SERVER = 3  # a supervised one is back by the second
_FINISHED = """
    SELECT DISTINCT rollout_id FROM spans
    WHERE op = 'rollout' AND run = ? AND epoch = ? AND mode = ? AND outcome <> 'infrastructure'
"""


class CollectionFailed(LightningError):
    """Too few rollouts could be run; what was collected stays, and the next try goes on from there."""


def collect(settings: Settings, epoch: EpochManifest, planned: list[PlannedRollout]) -> dict[str, Any]:
    """Run the planned rollouts that have no result yet, grade them, and seal the epoch; called inside a flow.

    Returns counts: rollouts by status and rewards graded. What was finished with the same keys is left alone; finished
    rollouts of other settings (another agent, other tasks, other sampling) are set aside, and that is said.
    """
    lake = Lake(settings.home)
    epoch.planned = [r.rollout_id for r in planned]
    key = rollouts_key(settings, epoch, planned)
    again = len({r.group_id for r in planned if r.again})
    if epoch.mode == "train":
        epoch.again = draw_again(settings, epoch.epoch)
        if settings.rollout.unsolved_per_epoch:
            epoch.repeated = list(dict.fromkeys(r.group_id for r in planned if r.again))

    def roll_out() -> dict[str, Any]:
        if again:
            logger().info(
                "%d tasks of epoch %d, not solved by all of their rollouts, are tried again", again, epoch.epoch - 1
            )
        epoch.sealed_offset = None
        ingest_spans(settings)
        finished = _begin(lake, epoch, key)
        missing = [r for r in planned if r.rollout_id not in finished]
        if finished:
            logger().info("%d of %d rollouts are finished already", len(planned) - len(missing), len(planned))
        counts = _roll_out(settings, epoch, missing)
        epoch.sealed_offset = ingest_spans(settings)
        unfinished = len(planned) - len(_finished(lake, epoch) & {r.rollout_id for r in planned})
        if unfinished and (gone := _gone(settings)):
            raise CollectionFailed(
                f"{gone} ended while rollouts ran, and {unfinished} of {len(planned)} have no result; see {settings.home / 'logs'} "
                "and run the epoch again: it is started anew, and finished rollouts are kept"
            )
        if unfinished > len(planned) // 2:
            raise CollectionFailed(
                f"{unfinished} of {len(planned)} rollouts of {epoch.mode} {epoch.epoch} failed for reasons of the "
                f"infrastructure ({_first(counts)}); see {settings.home / 'logs'} and run the epoch again: finished ones are kept"
            )
        if unfinished:
            logger().warning("%d rollouts have no result (infrastructure); the epoch goes on without them", unfinished)
        return {"planned": len(planned), "tried_again": again, "unfinished": unfinished, **counts}

    def reward() -> dict[str, Any]:
        if settings.reward.grader is None:
            return {}
        sealed, epoch.sealed_offset = epoch.sealed_offset, None  # rewards of a try that was killed lie behind it
        ingest_spans(settings)
        grades = grade_rollouts(settings, epoch)
        end = ingest_spans(settings)
        epoch.sealed_offset = max(sealed or 0, end)
        return grades

    collected = run_stage(lake, epoch, "collect", key, roll_out)
    return collected | {"grades": run_stage(lake, epoch, "grade", rewards_key(settings, epoch, planned), reward)}


def _begin(lake: Lake, epoch: EpochManifest, key: str) -> set[str]:
    """Rollouts that are finished with this key. Those of another one are set aside: one epoch is one experiment."""
    finished = _finished(lake, epoch)
    if epoch.rolled_out_with not in (None, key):
        begin_anew(lake, epoch)
        if finished:
            logger().warning(
                "%s %d begins anew: its tasks, agent, sampling or versions are not those that %d finished rollouts ran "
                "with; these stay in the lake, outside of the epoch",
                epoch.mode, epoch.epoch, len(finished),
            )  # fmt: skip
        finished = set()
    epoch.rolled_out_with = key
    lake.manifests.put_epoch(epoch)
    return finished


def _gone(settings: Settings) -> str | None:
    """Which of the services that the rollouts need is not there any more."""
    if GatewayHandle.find(settings.home) is None:
        return "the gateway"
    return "vLLM" if VllmServer.find(settings.home) is None else None


def _finished(lake: Lake, epoch: EpochManifest) -> set[str]:
    with lake.connect(epoch.span_range) as con:
        return {row[0] for row in con.execute(_FINISHED, [epoch.run, epoch.epoch, epoch.mode]).fetchall()}


def _roll_out(settings: Settings, epoch: EpochManifest, missing: list[PlannedRollout]) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    log = logger()
    server = GatewayHandle.find(settings.home)
    before = server.health() if server is not None else {}
    with task_runner(settings.cluster) as runner:
        while missing:
            lost = _round(settings, runner, epoch, missing, statuses, errors)
            if not lost:
                break
            ingest_spans(settings)
            finished = _finished(Lake(settings.home), epoch)
            still = [r for r in missing if r.rollout_id not in finished]
            if len(still) == len(missing):
                raise CollectionFailed(f"no worker of the cluster finishes a rollout: {lost}; see its logs")
            log.warning("workers were lost (%s); %d rollouts are begun again", lost, len(still))
            missing = still
    _say_what_was_refused(server, before)
    if statuses:
        log.info("%s %d: rollouts %s", epoch.mode, epoch.epoch, dict(statuses))
    for error, count in errors.most_common(5):
        log.warning("%d attempts: %s", count, error)
    return {"statuses": dict(statuses), "errors": dict(errors.most_common(5))}


def _round(
    settings: Settings,
    runner: TaskRunner[Any],
    epoch: EpochManifest,
    rollouts: list[PlannedRollout],
    statuses: Counter[str],
    errors: Counter[str],
) -> str:
    """Run these rollouts once, and count what came of them; returns what became of workers that were lost, or ""."""
    server = GatewayHandle.find(settings.home)
    if server is None:
        raise LightningError(f"no server runs for {settings.home}; start the flow, or `lightning-flows serve`, first")
    collection = None
    if settings.cluster.engine != "threads":
        collection = secrets.token_hex(8)
        server.begin_collection(f"{settings.run}/{epoch.mode}/{epoch.epoch}", collection)
    shards = split(rollouts, min(settings.rollout.shards, settings.rollout.concurrency))
    shared: dict[str, Any] = {"epoch": epoch.epoch, "mode": epoch.mode, "of": len(shards), "total": len(rollouts)}
    shared |= {"settings": settings, "server": server, "collection": collection}
    futures = [
        submit(runner, rollout_shard, rollouts=shard, number=number, **shared) for number, shard in enumerate(shards, 1)
    ]
    _wait(settings, futures)
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


def _say_what_was_refused(server: GatewayHandle | None, before: dict[str, Any]) -> None:
    """Spans that the server did not take while rollouts ran: agents' exporters give up sooner or later, and quietly."""
    if server is None:
        return
    try:
        now = server.health()
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


def _wait(settings: Settings, futures: list[Future[Any]]) -> None:
    """Wait for the shards and decode meanwhile: analysts see the epoch as it goes, and the spool stays short.

    Where the server is gone, and nobody starts it again, no rollout is begun any more: each would wait for it.
    """
    redaction = Redaction.of(settings.lake)
    gone = 0
    try:
        while not settled(futures, _DECODE_EVERY_S):
            decode_spool(settings.home, redaction)
            gone = gone + 1 if GatewayHandle.find(settings.home) is None else 0
            if gone == _LOOKS_WITHOUT_SERVER:
                close_runners()
    except BaseException:
        close_runners()  # or Ctrl-C would wait for every attempt still to come
        raise


def _first(counts: dict[str, Any]) -> str:
    return next(iter(counts["errors"]), "no attempt says why")
