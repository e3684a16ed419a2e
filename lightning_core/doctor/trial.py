"""Rollouts without a flow: an agent runs some tasks, and what the gateway took becomes a lake with one derived epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_core.agents.attempt import AttemptResult, AttemptSpec
from lightning_core.agents.grading import grade
from lightning_core.agents.runner import Runner, run_rollout
from lightning_core.config import Settings
from lightning_core.epoch.decoding import decode_spool
from lightning_core.epoch.derive import attempts, derive
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from lightning_core.lake.redact import Redaction


@dataclass(frozen=True)
class Trial:
    """`results` by task name, and the end of what the agent wrote to stderr and stdout; the lake's catalog has everything else."""

    results: Mapping[str, AttemptResult]
    printed: str
    lake: Lake
    epoch: EpochManifest


def try_agent(server: GatewayHandle, settings: Settings, tasks: Mapping[str, Mapping[str, Any]]) -> Trial:
    """Run the tasks (name → content) one after another, grade them, and derive them as epoch 0 of `settings.run`.

    Everything goes into the home of the gateway, whose routes say what model answers. Raises SettingsError for an agent that
    cannot be run at all.
    """
    settings = settings.model_copy(update={"home": Path(server.home)})  # not what a run of that name left at home
    lake = Lake(settings.home)
    decode_spool(server.home, None)
    epoch = lake.open_epoch(settings.run, 0, "train", {policy.name: "v0000" for policy in settings.policies})
    results = {}
    with Runner(settings.agent, model=settings.policies[0].name, logs=server.home / "logs" / "attempts") as runner:
        for name, content in tasks.items():
            results[name] = run_rollout(runner, _Spec(server, settings, name, content), settings.rollout.retries)
    decode_spool(server.home, Redaction.of(settings.lake))
    if settings.reward.grader is not None:
        with attempts(lake, epoch) as con:
            grade(settings.reward.grader, con, server.store)
        decode_spool(server.home, Redaction.of(settings.lake))
    derive(lake, epoch, settings, "trial")
    lake.manifests.put_epoch(epoch)
    lake.rebuild_catalog()
    printed = _printed(server.home / "logs" / "attempts", [result.rollout_id for result in results.values()])
    return Trial(results, printed, lake, epoch)


def _printed(logs: Path, rollouts: list[str], most: int = 2000) -> str:
    files = [
        file for rollout in rollouts for end in ("stderr", "stdout") for file in sorted(logs.glob(f"{rollout}/*.{end}"))
    ]
    return "\n".join(text for file in files if (text := file.read_text(errors="replace")[-most:].strip()))


@dataclass(frozen=True)
class _Spec:
    server: GatewayHandle
    settings: Settings
    name: str
    content: Mapping[str, Any]

    def __call__(self, attempt_id: str) -> AttemptSpec:
        rollout = f"{self.settings.run}.{self.name}"
        return AttemptSpec(
            run=self.settings.run,
            epoch=0,
            mode="train",
            rollout_id=rollout,
            attempt_id=attempt_id,
            group_id=self.name,
            task_id=self.name,
            task=self.content,
            base_url=self.server.attempt_url(rollout, attempt_id),
            token=self.server.mint(rollout, attempt_id, "train"),
        )
