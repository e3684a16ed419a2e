"""One epoch, from its rollouts to the deployed version.

prefect deployment run train-epoch/local
"""

from __future__ import annotations

import contextlib
from typing import Any

from prefect import flow

from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.finetune import require_own_rollouts
from lightning_core.epoch.patterns import settle
from lightning_core.epoch.plan import plan_training
from lightning_core.epoch.resume import starts_from
from lightning_core.epoch.services import Services, running, vllm_asleep
from lightning_core.epoch.stage_keys import outputs
from lightning_core.epoch.stages import Stage
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, run_name
from lightning_flows.flows.run import SHARDS, at_work, begin_run, close, redo
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.deploy import deploy
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.overlap import rolling_out_next
from lightning_flows.tasks.preflight import training_tasks
from lightning_flows.tasks.progress import logger, say
from lightning_flows.tasks.rollouts import roll_out
from lightning_flows.tasks.train import train_policies
from lightning_flows.tasks.versions import prune_versions


@flow(
    name="train-epoch",
    flow_run_name=run_name("{run} epoch {epoch}"),
    task_runner=SHARDS,
    validate_parameters=True,
)
def train_epoch(
    settings: GivenSettings,
    epoch: int | None = None,
    from_stage: Stage | None = None,
    goes_on: bool = False,
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, Any]:
    """Train one epoch of a run; `epoch: null` is the first unfinished one.

    goes_on: the next epoch follows at once, so its rollouts begin when the new version is served, while this epoch is
    written and recorded. With `async_level: 1` they run, if there is one, during the training already.
    An interrupted epoch resumes where it stopped: finished rollouts and stages are not repeated, unless what
    they read has changed, or `from_stage` names the stage to repeat from.
    """
    run = begin_run(settings, overrides)
    number = run.next_epoch() if epoch is None else epoch
    planned = plan_training(run, training_tasks(run.settings.tasks), number)
    with at_work(run):
        opened = run.open(number, "train", run.versions(number))
        manifest, what = opened.manifest, f"epoch {number} of run {run.run}"
        require_own_rollouts(manifest)
        if from_stage is not None:
            run.require_versions(manifest.versions, what)
            run.require_versions(manifest.ended_with if from_stage == "record" else {}, what)
            redo(opened, from_stage)
        if outputs(opened, planned) is not None:
            logger().info("%s is done, with these settings", what)
            return {"epoch": number} | manifest.outputs
        watch(run, number)
        run.require_versions(manifest.versions, what)
        run.require_versions(starts_from(opened, planned), what)
        with running(run, say("services")) as services:
            settle(opened)
            deploy(run, services, starts_from(opened, planned))
            roll_out(opened, planned)
            learn_from(opened, services, ahead=opened.settings.async_level == 1, goes_on=goes_on)
    return {"epoch": number} | manifest.outputs


def learn_from(
    epoch: Epoch, services: Services | None, ahead: bool = False, goes_on: bool = False
) -> dict[str, dict[str, Any]]:
    """Take an epoch from its rollouts to its end: sequences, train, deploy (where services run), record.

    Returns policy → version and metrics. The rollouts of the epoch after it run while it trains (`ahead`) or is written (`goes_on`).
    """
    derive_tables(epoch)
    with contextlib.ExitStack() as beside:
        if services is not None:
            beside.enter_context(vllm_asleep(epoch, services))
            if ahead:
                beside.enter_context(rolling_out_next(epoch, services, epoch.manifest.versions))
        trained = train_policies(epoch)
        if ahead:  # kept, whatever comes of the rollouts beside it
            trained.write()
    with contextlib.ExitStack() as beside:
        try:
            if services is not None:
                deploy(epoch, services, epoch.manifest.ended_with)
                if goes_on and not ahead:
                    beside.enter_context(rolling_out_next(epoch, services, epoch.manifest.ended_with))
        finally:  # kept, also where it cannot be served
            if not ahead:
                trained.write()
        close(epoch, epoch.number + 1, services)
        prune_versions(epoch)
    return trained.outputs
