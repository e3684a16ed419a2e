"""Rollouts without a flow: an agent runs some tasks, and what the gateway took becomes a lake with one derived epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_core.agents.attempt import AttemptResult
from lightning_core.agents.grading import grade
from lightning_core.agents.runner import Runner, run_rollout
from lightning_core.config import Settings
from lightning_core.epoch.decoding import decode_spool
from lightning_core.epoch.derive import attempts, derive
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import PlannedRollout, Task, attempt_of
from lightning_core.epoch.prompts import with_prompts
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake.redact import Redaction

_PRINTED = 2000  # characters of each file that are shown


@dataclass(frozen=True)
class Trial:
    """`results` by task name, and the end of what the agent wrote to stderr and stdout; the catalog of the epoch's lake has everything else."""

    results: Mapping[str, AttemptResult]
    printed: str
    epoch: Epoch


def try_agent(gateway: GatewayHandle, settings: Settings, tasks: Mapping[str, Mapping[str, Any]]) -> Trial:
    """Run the tasks (name → content) one after another, grade them, and derive them as epoch 0 of `settings.run`.

    Everything goes into the home of the gateway, whose routes say what model answers. Raises SettingsError for an agent that
    cannot be run at all.
    """
    settings = settings.model_copy(update={"home": Path(gateway.home)})  # not what a run of that name left at home
    run, redaction = Run(settings), Redaction.of(settings.lake)
    decode_spool(run.lake, None)
    epoch = run.open(0, "train", run.versions(0))
    results = {}
    with Runner(settings.agent, model=settings.policies[0].name, logs=gateway.home / "logs" / "attempts") as runner:
        for name, content in tasks.items():
            (planned,) = with_prompts(epoch, [PlannedRollout(f"{run.run}.{name}", name, Task(name, dict(content)))])
            spec = partial(attempt_of, epoch, planned, gateway=gateway)
            results[name] = run_rollout(runner, spec, settings.rollout.retries)
    decode_spool(run.lake, redaction)
    if settings.reward.grader is not None:
        with attempts(epoch) as con:
            grade(settings.reward.grader, con, gateway.store)
        decode_spool(run.lake, redaction)
    derive(epoch, "trial")
    epoch.save()
    run.lake.rebuild_catalog()
    printed = _printed(gateway.home / "logs" / "attempts", [result.rollout_id for result in results.values()])
    return Trial(results, printed, epoch)


def _printed(logs: Path, rollouts: list[str]) -> str:
    files = [
        file for rollout in rollouts for end in ("stderr", "stdout") for file in sorted(logs.glob(f"{rollout}/*.{end}"))
    ]
    return "\n".join(text for file in files if (text := file.read_text(errors="replace")[-_PRINTED:].strip()))
