"""Supervised fine-tuning on recorded rollouts: the best so far are the examples; no rollout is run.

lightning-flows finetune settings.yaml --set run=mine-sft --set 'finetune={runs: [mine]}'
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from lightning_core.epoch.collected import open_finetune
from lightning_core.epoch.patterns import settle
from lightning_core.epoch.services import base_model, require_versions, versions
from lightning_core.lake.lake import Lake
from lightning_flows.flows.evaluate import evaluate
from lightning_flows.flows.parameters import (
    NO_OVERRIDES,
    GivenSettings,
    Overrides,
    resolve,
    run_name,
)
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.derive import derive_tables
from lightning_flows.tasks.ingest import ingest_spans
from lightning_flows.tasks.preflight import begin
from lightning_flows.tasks.progress import logger, say
from lightning_flows.tasks.publish import publish_lake
from lightning_flows.tasks.track import record, tracked
from lightning_flows.tasks.train import train_policies
from lightning_flows.tasks.versions import collect_versions


@flow(name="finetune", flow_run_name=run_name("{run} finetune"), validate_parameters=True, persist_result=False)
def finetune(
    settings: GivenSettings, evaluate_after: bool = False, overrides: Overrides = NO_OVERRIDES
) -> dict[str, Any]:
    """Train every policy on the examples that `settings.finetune` and the policies' `sft` choose; publish the versions.

    It is the run's next epoch, so its versions follow the run's newest (or `finetune.version`), and epochs with rollouts
    can come after it. An interrupted finetuning resumes where it stopped. Returns the epoch, the number of rollouts read,
    the version and metrics by policy, and, with `evaluate_after`, what `evaluate` returns. The tables
    `finetune_rollouts`, `advantages` and `exclusions` list what was no example, and why.
    """
    settings = resolve(settings, overrides)
    begin(settings, "finetune")
    if evaluate_after:
        begin(settings, "evaluate")
    lake = Lake(settings.home)
    with tracked(settings), lake.working_on(settings.run):
        base_model(settings, say("model"))
        ingest_spans(settings)
        number = lake.manifests.next_epoch(settings.run)
        watch(settings, number)
        wanted = settings.finetune.version
        begins = versions(settings, number) if wanted is None else {p.name: wanted for p in settings.policies}
        require_versions(settings, begins, f"the finetuning of run {settings.run}")
        manifest = open_finetune(lake, settings, number, begins)
        logger().info("%d rollouts of %d epochs are looked at", len(manifest.planned), len(manifest.sources))
        settle(lake, settings, manifest)
        derive_tables(settings, manifest)
        trained = train_policies(settings, manifest)
        record(settings, manifest)
        publish_lake(settings.home, settings.lake)
        watch(settings, number + 1)
        collect_versions(settings)
    held_out = evaluate(settings, number + 1) if evaluate_after else None
    return {"epoch": number, "rollouts": len(manifest.planned), "trained": trained, "held_out": held_out}
