"""Who is on which GPU: vLLM and training on one take turns."""

from __future__ import annotations

import os

from lightning_core.config import Settings, SettingsError, VllmSettings
from lightning_core.policies.vllm_command import cpu_build


def serving(settings: Settings) -> VllmSettings:
    """The settings of vLLM, with it decided whether it sleeps while a policy is trained (`colocated`)."""
    return settings.vllm.model_copy(update={"colocated": takes_turns(settings)})


def takes_turns(settings: Settings) -> bool:
    """Whether vLLM gives its GPU's memory back while a policy is trained: as the settings say, else where they share one.

    Raises VllmError where no vLLM is installed.
    """
    if settings.vllm.colocated is not None:
        return settings.vllm.colocated
    return settings.async_level == 0 and bool(shared_gpus(settings))


def check_gpus(settings: Settings) -> None:
    """Raises SettingsError where vLLM and training would be at work on one GPU at one time."""
    shared = shared_gpus(settings)
    if settings.async_level and shared:
        raise SettingsError(
            f"`async_level: 1` samples while a policy is trained, and GPU {', '.join(sorted(shared))} is both vLLM's and training's; "
            "give each its own by `vllm.devices` and `training_devices`, or take `async_level: 0`"
        )


def shared_gpus(settings: Settings) -> set[str]:
    """GPUs, as CUDA_VISIBLE_DEVICES names them, that vLLM and training both begin on; none where vLLM computes on the CPU."""
    if cpu_build():
        return set()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # what is given none of its own takes
    ours, theirs = (
        {gpu for gpus in given for gpu in gpus.split(",")} or {first}
        for given in (settings.vllm.devices, settings.training_devices)
    )
    return ours & theirs
