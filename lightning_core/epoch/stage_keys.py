"""What each stage of an epoch reads, as a key: where a stage was done with the same key, it is not done again.

The stages in their order, under the names that `--from` takes, and what is in the key of each:

rollouts  the plan with its tasks, the versions sampled from, the agent (settings, source, packages), sampling, the gateway,
          the versions of prompts where the settings have some
rewards   the key of the rollouts, and the grader (name and source)
sequences the epoch's range of the spool, what the SQL reads of the settings, the SQL, and the code that runs it
train     the epoch's sequences, the policy's settings, the seed, the parent version, the trainer's code, and the source of an
          algorithm of one's own and of SQL that weighs tokens
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
from lightning_core.config import PolicySettings
from lightning_core.epoch.derive import derive_code, sql_digest
from lightning_core.epoch.derive_inputs import settings_read
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import PlannedRollout, own_prompts, plan_training
from lightning_core.epoch.task_file import load_tasks
from lightning_core.lake.manifest import EpochManifest, stage_key
from lightning_core.loading import code_digest
from lightning_core.training.code import algorithm_code, training_code

# What decides how a call is answered, not when.
_OF_THE_GATEWAY = {"upstreams", "version_change", "media_urls", "calls_per_rollout", "tokens_per_rollout"}


def rollouts_key(epoch: Epoch, planned: list[PlannedRollout]) -> str:
    """Return the key of the epoch's rollouts: what was rolled out under another key is not the same experiment's."""
    settings = epoch.settings
    # Which groups are replaced follows from the others' rewards.
    plan = [(r.rollout_id, r.group_id, r.task.content) for r in planned if not r.spare]
    sampled = (
        [(p.name, p.model, p.sampling.model_dump(mode="json")) for p in settings.policies]
        if epoch.mode == "train"
        else settings.evaluation.max_tokens
    )
    return stage_key(
        hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest(),
        epoch.manifest.sampled_from,
        agent_digest(settings.agent),
        sampled,
        settings.gateway.model_dump(mode="json", include=_OF_THE_GATEWAY),
        settings.frozen,
        settings.aliases,
        settings.vllm.model_dump(mode="json", include={"max_model_len", "dtype", "extra_args"}),
        *(["head_in_float32"] if settings.vllm.head_in_float32 else []),
        *([_prompts(epoch, planned)] if settings.prompts else []),
        *(
            [["replaced_groups", budget]]
            if epoch.mode == "train" and (budget := settings.rollout.replaced_groups)
            else []
        ),
    )


def _prompts(epoch: Epoch, planned: list[PlannedRollout]) -> dict[str, Any]:
    """Return what rollouts are served: prompt → its version and the pattern that it takes the place of; and what single
    ones have instead."""
    versions = epoch.manifest.prompt_versions
    served = {name: (versions.get(name), prompt.match) for name, prompt in epoch.settings.prompts.items()}
    return {"served": served, "own": [(r.rollout_id, own) for r in planned if (own := own_prompts(epoch, r))]}


def rewards_key(epoch: Epoch, planned: list[PlannedRollout]) -> str:
    return stage_key(rollouts_key(epoch, planned), code_digest(epoch.settings.reward.grader))


def sequences_key(epoch: Epoch) -> str:
    manifest = epoch.manifest
    return stage_key(
        manifest.planned,
        manifest.span_range,
        manifest.versions,
        {name: p.pattern for name, p in manifest.patterns.items()},
        manifest.prompts or {},
        settings_read(epoch.settings),
        sql_digest(epoch.settings.policies),
        derive_code(),
    )


def train_key(epoch: Epoch, policy: PolicySettings) -> str:
    """Return the key of a policy's training. Raises KeyError before the epoch's sequences are derived."""
    scheduled_over = epoch.settings.epochs if policy.training.lr_schedule != "constant" else None
    sequences, parent = epoch.manifest.tables["sequences"].digest, epoch.manifest.versions[policy.name]
    aside: dict[str, Any] = {"aliases": True, "training": {"checkpoint_seconds"}}
    read = policy.model_dump(mode="json", exclude=aside, exclude_defaults=True)
    code = [training_code(), *algorithm_code(policy)]
    return stage_key(sequences, read, epoch.settings.seed, scheduled_over, parent, *code)


def record_key(epoch: EpochManifest) -> str:
    return stage_key({name: stage.key for name, stage in epoch.stages.items() if name != "record"})


def outputs(epoch: Epoch, planned: list[PlannedRollout]) -> dict[str, Any] | None:
    """Return the output of every stage, by its name in the manifest, where all are done with their keys; else None."""
    if not {"rollouts", "rewards", "sequences", "record"} <= epoch.manifest.stages.keys():
        return None
    keys = {
        "rollouts": rollouts_key(epoch, planned),
        "rewards": rewards_key(epoch, planned),
        "sequences": sequences_key(epoch),
        "record": record_key(epoch.manifest),
    }
    if epoch.mode == "train":
        keys |= {f"train {policy.name}": train_key(epoch, policy) for policy in epoch.settings.policies}
    found = {stage: epoch.manifest.done(stage, key) for stage, key in keys.items()}
    return None if None in found.values() else found


def is_done(run: Run, number: int) -> bool:
    """Return whether a training epoch has all outputs for these settings and the versions before it; change nothing."""
    known = run.known(number)
    if known is None or known.sources or known.versions != run.versions(number):
        return False
    tasks = load_tasks(run.settings.tasks.train, "tasks.train")
    return outputs(run.at(known), plan_training(run, tasks, number)) is not None
