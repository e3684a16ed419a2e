"""Training one policy on the epoch's sequences, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
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
from lightning_flows.tasks.api import limited, wait_for_api
from lightning_flows.tasks.progress import Progress, logger
from lightning_flows.tasks.step import step

TRAINER = "trainer"  # tag of the task, for a limit on how many train at once


@dataclass(frozen=True)
class Trained:
    """Policies that were trained: policy → version and metrics. `write` returns when all of it is on the disk, and noted as done."""

    outputs: dict[str, dict[str, Any]]
    write: Callable[[], None] = lambda: None


def train_policies(epoch: Epoch) -> Trained:
    """Train the policies: one after another, or so many at one time as there are `training_devices`.

    Where one fails, those that are under way finish (what they publish is not trained again), then its error is raised.
    """
    settings = epoch.settings
    devices: SimpleQueue[str | None] = SimpleQueue()
    for place in settings.training_devices:
        devices.put(place)
    if devices.empty():
        devices.put(None)

    def train(policy: PolicySettings) -> Trained:
        device = devices.get()
        try:
            wait_for_api()
            with limited(TRAINER):
                trained = train_policy(epoch, policy, device)
            if len(settings.policies) > 1:  # what follows may take long, or fail
                trained.write()
            return trained
        finally:
            devices.put(device)

    if len(settings.policies) == 1:
        return train(settings.policies[0])
    if devices.qsize() == 1:
        return _together([train(policy) for policy in settings.policies])
    with ThreadPoolExecutor(devices.qsize(), thread_name_prefix="train") as threads:
        # A context each: Prefect finds the flow run in it.
        futures = [threads.submit(copy_context().run, train, policy) for policy in settings.policies]
        try:
            return _together([future.result() for future in futures])
        except BaseException as error:
            for future in futures:
                future.cancel()
            if not isinstance(error, Exception):
                end_all()
            raise


def _together(trained: list[Trained]) -> Trained:
    return Trained({name: output for one in trained for name, output in one.outputs.items()})


@step("train {policy.name} epoch {epoch.number}")
def train_policy(epoch: Epoch, policy: PolicySettings, device: str | None = None) -> Trained:
    """Train a policy (on `device`, a value of CUDA_VISIBLE_DEVICES) and publish its next version.

    Where it is not this epoch's turn, or no sequence is left to train on, the version stays what it was, and the log says why.
    """
    parent = epoch.manifest.versions[policy.name]
    key = train_key(epoch, policy)
    log = logger()
    progress = cache(partial(Progress, f"steps of {policy.name}", of=epoch.named))

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

    to_write: list[Callable[[], None]] = []

    def work() -> dict[str, Any]:
        if not policy.trains_in(epoch.number):
            return {"version": parent, "metrics": {}, "skipped": f"not trained in epoch {epoch.number} (train_every)"}
        base = resolve_model(policy.model, epoch.settings.models, log.debug)
        made = train_version(epoch, policy, base.path, on_progress, device)
        to_write.append(made.write)
        return made.output

    def write() -> None:
        for one in to_write:
            one()
        epoch.save()

    output = run_stage(epoch, f"train {policy.name}", key, work, save=False)
    if output["version"] == parent:
        log.warning("%s: %s", policy.name, output["skipped"])
    return Trained({policy.name: output}, write)
