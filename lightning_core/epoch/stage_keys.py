"""What each stage of an epoch reads, as a key: where a stage was done with the same key, it is not done again.

The stages in their order, under the names that `--from` takes, and what is in the key of each:

rollouts  the plan with its tasks, the versions sampled from, the agent (settings, source, packages), sampling, the gateway
rewards   the key of the rollouts, and the grader (name and source)
triplets  the epoch's range of the spool, what the SQL reads of the settings, the SQL, and the code that runs it
train     the epoch's sequences, the policy's settings, the seed, the parent version, the trainer's code
record    the keys of all the others

Left out: what changes only how fast a stage is (concurrency, shards, retries, sizes of caches). How a policy is packed and
over how many processes it is trained is in its settings, and changes the last digits. Settings at their default are in no
key but that of the rollouts, which has had those it names from the beginning: a home keeps it when a setting comes or goes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lightning_core.agents.source import agent_digest
from lightning_core.config import PolicySettings, Settings
from lightning_core.epoch.derive import derive_code, sql_digest
from lightning_core.epoch.derive_inputs import settings_read
from lightning_core.epoch.plan import PlannedRollout, plan_training
from lightning_core.epoch.task_file import load_tasks
from lightning_core.lake.manifest import EpochManifest, Manifests, stage_key
from lightning_core.loading import grader_digest
from lightning_core.training.code import training_code

# What decides how a call is answered, not when.
_OF_THE_GATEWAY = {"upstreams", "version_change", "media_urls", "calls_per_rollout", "tokens_per_rollout"}


def rollouts_key(settings: Settings, epoch: EpochManifest, planned: list[PlannedRollout]) -> str:
    """Key of the epoch's rollouts: under another one, what was collected is not the same experiment's."""
    plan = [(r.rollout_id, r.group_id, r.task.content) for r in planned]
    sampled = (
        [(p.name, p.model, p.sampling.model_dump(mode="json")) for p in settings.policies]
        if epoch.mode == "train"
        else settings.evaluation.max_tokens
    )
    return stage_key(
        hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest(),
        epoch.sampled_from,
        agent_digest(settings.agent),
        sampled,
        settings.gateway.model_dump(mode="json", include=_OF_THE_GATEWAY),
        settings.frozen,
        settings.aliases,
        settings.vllm.model_dump(mode="json", include={"max_model_len", "dtype", "extra_args"}),
    )


def rewards_key(settings: Settings, epoch: EpochManifest, planned: list[PlannedRollout]) -> str:
    return stage_key(rollouts_key(settings, epoch, planned), grader_digest(settings.reward.grader))


def triplets_key(settings: Settings, epoch: EpochManifest) -> str:
    return stage_key(
        epoch.planned,
        epoch.span_range,
        epoch.versions,
        {name: p.pattern for name, p in epoch.patterns.items()},
        settings_read(settings),
        sql_digest(settings),
        derive_code(),
    )


def train_key(settings: Settings, epoch: EpochManifest, policy: PolicySettings) -> str:
    """Raises KeyError before the epoch's sequences are derived."""
    scheduled_over = settings.epochs if policy.training.lr_schedule != "constant" else None
    sequences, parent = epoch.tables["sequences"].digest, epoch.versions[policy.name]
    aside: dict[str, Any] = {"aliases": True, "training": {"checkpoint_seconds"}}
    read = policy.model_dump(mode="json", exclude=aside, exclude_defaults=True)
    return stage_key(sequences, read, settings.seed, scheduled_over, parent, training_code())


def record_key(epoch: EpochManifest) -> str:
    return stage_key({name: stage.key for name, stage in epoch.stages.items() if name != "record"})


def outputs(settings: Settings, epoch: EpochManifest, planned: list[PlannedRollout]) -> dict[str, Any] | None:
    """Output of every stage, by the stage's name in the manifest, where all are done with their keys; else None."""
    if not {"collect", "grade", "derive", "record"} <= epoch.stages.keys():
        return None
    keys = {
        "collect": rollouts_key(settings, epoch, planned),
        "grade": rewards_key(settings, epoch, planned),
        "derive": triplets_key(settings, epoch),
        "record": record_key(epoch),
    }
    if epoch.mode == "train":
        keys |= {f"train {policy.name}": train_key(settings, epoch, policy) for policy in settings.policies}
    found = {stage: epoch.done(stage, key) for stage, key in keys.items()}
    return None if None in found.values() else found


def is_done(settings: Settings, number: int, versions: dict[str, str]) -> bool:
    """Whether a training epoch has all its outputs for these settings and for these versions before it; changes nothing."""
    epoch = Manifests(settings.home / "lake").epoch(settings.run, number)
    if epoch is None or epoch.sources or epoch.versions != versions:
        return False
    tasks = load_tasks(settings.tasks.train, "tasks.train")
    return outputs(settings, epoch, plan_training(settings, tasks, number)) is not None
