"""Training one policy on the epoch's sequences, in a process of its own."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from lightning_core.config import PolicySettings, Settings
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.stages import run_stage
from lightning_core.policies.model import resolve_model
from lightning_core.stage_keys import train_key
from lightning_core.training.epoch import train_version
from tasks.progress import Progress, logger


@task(task_run_name="train {policy.name} epoch {epoch.epoch}", cache_policy=NO_CACHE, persist_result=False)
def train_policy(settings: Settings, policy: PolicySettings, epoch: EpochManifest) -> dict[str, Any]:
    """Train a policy and publish its next version; returns the version and the metrics of training.

    Where it is not this epoch's turn, or no sequence is left to train on, the version stays what it was, and the log says why.
    """
    lake = Lake(settings.home)
    parent = epoch.versions[policy.name]
    key = train_key(settings, epoch, policy)
    log = logger()
    progress: Progress | None = None

    def on_progress(event: dict[str, Any]) -> None:
        nonlocal progress
        if "step" in event:
            progress = progress or Progress(f"train {epoch.epoch} steps of {policy.name}", event["steps"])
            progress.at(event["step"], f"loss {event.get('loss', 0.0):.4f}")
            log.info(
                "%s: step %d/%d, loss %.4f, gradient norm %.3f, %d tokens (%d unique) in %.1f s",
                policy.name, event["step"], event["steps"], event["loss"], event["grad_norm"],
                event["tokens"], event["unique_tokens"], event["seconds"],
            )  # fmt: skip
        elif "phase" in event:
            log.info("%s: %s", policy.name, event["phase"])

    def work() -> dict[str, Any]:
        if not policy.trains_in(epoch.epoch):
            return {"version": parent, "metrics": {}, "skipped": f"not trained in epoch {epoch.epoch} (train_every)"}
        base = resolve_model(policy.model, settings.models, log.debug)
        return train_version(lake, settings, policy, epoch, base.path, key, on_progress)

    output = run_stage(lake, epoch, f"train {policy.name}", key, work)
    if output["version"] == parent:
        log.warning("%s: %s", policy.name, output["skipped"])
    return output
