"""Supervised fine-tuning on recorded rollouts: the best so far are the examples; no rollout is run.

lightning-flows finetune settings.yaml --set run=mine-sft --set 'finetune={runs: [mine]}'
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from lightning_core.epoch.finetune import open_finetune
from lightning_core.epoch.patterns import settle
from lightning_core.epoch.services import base_model
from lightning_flows.flows.evaluate import evaluate
from lightning_flows.flows.parameters import NO_OVERRIDES, GivenSettings, Overrides, run_name
from lightning_flows.flows.run import at_work, begin_run
from lightning_flows.flows.train_epoch import learn_from
from lightning_flows.tasks.alarm import watch
from lightning_flows.tasks.ingest import ingest_spans
from lightning_flows.tasks.preflight import begin
from lightning_flows.tasks.progress import logger, say


@flow(name="finetune", flow_run_name=run_name("{run} finetune"), validate_parameters=True)
def finetune(
    settings: GivenSettings, evaluate_after: bool = False, overrides: Overrides = NO_OVERRIDES
) -> dict[str, Any]:
    """Train every policy on the examples that `settings.finetune` and the policies' `sft` choose; publish the versions.

    It is the run's next epoch, so its versions follow the run's newest (or `finetune.version`), and epochs with rollouts
    can come after it. An interrupted finetuning resumes where it stopped. Returns the epoch, the number of rollouts read,
    the version and metrics by policy, and, with `evaluate_after`, what `evaluate` returns. The tables
    `finetune_rollouts`, `advantages` and `exclusions` list what was no example, and why.
    """
    run = begin_run(settings, overrides, "finetune")
    if evaluate_after:
        begin(run.settings, "evaluate")
    with at_work(run):
        base_model(run, say("model"))
        ingest_spans(run)
        number = run.next_epoch()
        watch(run, number)
        wanted = run.settings.finetune.version
        start = run.versions(number) if wanted is None else dict.fromkeys(run.policies, wanted)
        run.require_versions(start, f"the finetuning of run {run.run}")
        epoch = open_finetune(run, number, start)
        manifest = epoch.manifest
        logger().info("%d rollouts of %d epochs are looked at", len(manifest.planned), len(manifest.sources))
        settle(epoch)
        trained = learn_from(epoch, None)
    held_out = evaluate(run.settings, number + 1) if evaluate_after else None
    return {"epoch": number, "rollouts": len(manifest.planned), "trained": trained, "held_out": held_out}
