"""Training one policy on the epoch's sequences, in a process of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from queue import SimpleQueue
from typing import Any

from lightning_core.config import PolicySettings
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.stage_keys import train_key
from lightning_core.epoch.stages import run_stage
from lightning_core.epoch.training import train_version
from lightning_core.events import At, shown
from lightning_core.policies.model import resolve_model
from lightning_core.training.launch import end_all
from lightning_flows.tasks.api import wait_for_api
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step


def train_policies(epoch: Epoch) -> dict[str, dict[str, Any]]:
    """Train the policies; returns policy → what `train_policy` returns: one after another, or so many at one time as there are `training_devices`.

    Where one fails, those that are under way come to their end (what they publish is not trained again), then it is raised.
    """
    settings = epoch.settings
    devices: SimpleQueue[str | None] = SimpleQueue()
    for place in settings.training_devices:
        devices.put(place)
    if devices.empty():
        devices.put(None)

    def train(policy: PolicySettings) -> dict[str, Any]:
        device = devices.get()
        try:
            wait_for_api()
            return train_policy(epoch, policy, device)
        finally:
            devices.put(device)

    if devices.qsize() == 1:
        return {policy.name: train(policy) for policy in settings.policies}
    with ThreadPoolExecutor(devices.qsize(), thread_name_prefix="train") as threads:
        # A context each: Prefect finds the flow run in it.
        futures = {p.name: threads.submit(copy_context().run, train, p) for p in settings.policies}
        try:
            return {name: future.result() for name, future in futures.items()}
        except BaseException as error:
            for future in futures.values():
                future.cancel()
            if not isinstance(error, Exception):
                end_all()
            raise


@step("train {policy.name} epoch {epoch.number}", "trainer")
def train_policy(epoch: Epoch, policy: PolicySettings, device: str | None = None) -> dict[str, Any]:
    """Train a policy (on `device`, a value of CUDA_VISIBLE_DEVICES) and publish its next version; returns the version and the metrics of training.

    Where it is not this epoch's turn, or no sequence is left to train on, the version stays what it was, and the log says why.
    """
    parent = epoch.manifest.versions[policy.name]
    key = train_key(epoch, policy)
    log = logger()
    progress = cache(partial(Progress, f"train {epoch.number} steps of {policy.name}"))

    def on_progress(event: dict[str, Any]) -> None:
        if "step" in event:
            progress(event["steps"]).at(event["step"], f"loss {event.get('loss', 0.0):.4f}")
            log.info(
                "%s: step %d/%d, loss %.4f, gradient norm %.3f, %d tokens (%d unique) in %.1f s",
                policy.name, event["step"], event["steps"], event["loss"], event["grad_norm"],
                event["tokens"], event["unique_tokens"], event["seconds"],
            )  # fmt: skip
        elif "phase" in event:
            log.info("%s: %s", policy.name, event["phase"], extra=shown(At()))
        elif "warning" in event:
            log.warning("%s: %s", policy.name, event["warning"])
        elif "resumed_at" in event:
            log.info("%s: going on after step %d of %d", policy.name, event["resumed_at"], event["steps"])

    def work() -> dict[str, Any]:
        if not policy.trains_in(epoch.number):
            return {"version": parent, "metrics": {}, "skipped": f"not trained in epoch {epoch.number} (train_every)"}
        base = resolve_model(policy.model, epoch.settings.models, log.debug)
        return train_version(epoch, policy, base.path, on_progress, device)

    output = run_stage(epoch, f"train {policy.name}", key, work)
    if output["version"] == parent:
        log.warning("%s: %s", policy.name, output["skipped"])
    return output
