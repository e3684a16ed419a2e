"""Which versions of the prompts an epoch's rollouts are served: entered in its manifest when they begin."""

from __future__ import annotations

from dataclasses import replace

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.plan import PlannedRollout
from lightning_core.prompts.seeds import read_seeds
from lightning_core.prompts.served import PromptSet
from lightning_core.prompts.store import PromptStore


def current_prompts(settings: Settings) -> dict[str, str]:
    """Return prompt → version that a new epoch uses; an edited file is a new version from here on. Raises SettingsError."""
    texts = read_seeds(settings.prompts)
    return {
        name: PromptStore(settings.home, name).read_file(text, settings.prompts[name].file)
        for name, text in texts.items()
    }


def with_prompts(epoch: Epoch, planned: list[PlannedRollout]) -> list[PlannedRollout]:
    """Return the rollouts, each with what it is served: the epoch's versions, which its manifest has then, or its own.

    A training epoch keeps the versions that it began with; an evaluation is of what is current. Called where the home is; the
    rollouts may then run elsewhere.
    """
    manifest, current = epoch.manifest, current_prompts(epoch.settings)
    kept = manifest.prompt_versions if epoch.mode == "train" else {}
    versions = {name: kept.get(name, version) for name, version in current.items()}
    if versions != manifest.prompt_versions:
        manifest.prompt_versions = versions
        epoch.save()
    if not versions:
        return planned
    shared = PromptSet.of(epoch.home, epoch.settings.prompts, versions)
    planned = [replace(rollout, prompts=rollout.prompts or shared) for rollout in planned]
    for found in {r.prompts.digest: r.prompts for r in planned if r.prompts is not None}.values():
        found.keep(epoch.home)
    return planned
