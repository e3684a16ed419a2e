"""Who is on which GPU: vLLM and training on one take turns."""

from __future__ import annotations

import os

from lightning_core.config import Settings, SettingsError, VllmSettings
from lightning_core.policies.vllm_command import cpu_build


def serving(settings: Settings) -> VllmSettings:
    """Return the settings of vLLM with `colocated` decided: whether it sleeps while a policy is trained."""
    return settings.vllm.model_copy(update={"colocated": takes_turns(settings)})


def takes_turns(settings: Settings) -> bool:
    """Return whether vLLM gives its GPU's memory back while a policy is trained.

    The settings decide it; where they do not, it does if the two share a GPU and `async_level` is 0. Raises VllmError
    where no vLLM is installed.
    """
    if settings.vllm.colocated is not None:
        return settings.vllm.colocated
    return settings.async_level == 0 and shares_gpu(settings)


def check_gpus(settings: Settings) -> None:
    """Raise SettingsError where vLLM and training would use one GPU at one time, and `vllm.colocated` is not given."""
    if settings.async_level and settings.vllm.colocated is None and shares_gpu(settings):
        raise SettingsError(
            "`async_level: 1` samples while a policy is trained, and vLLM and training have a GPU in common; give each its own by "
            "`vllm.devices` and `training_devices`, or say `vllm.colocated: false` and leave training room by `vllm.extra_args: "
            "[--gpu-memory-utilization, ...]`, or take `async_level: 0`"
        )


def shares_gpu(settings: Settings) -> bool:
    """Return whether vLLM and training have a GPU in common; never where vLLM computes on the CPU."""
    if cpu_build():
        return False
    ours, theirs = gpus_of(settings)
    return ours is None or theirs is None or bool(ours & theirs)


def gpus_of(settings: Settings) -> tuple[set[str] | None, set[str] | None]:
    """Return the GPUs of vLLM and those of training."""
    flags = [argument.partition("=")[0] for argument in settings.vllm.extra_args]
    several = any("-parallel" in flag or flag in ("-tp", "-pp", "-dp") for flag in flags)
    ranks = any(p.training.processes > 1 or p.training.accelerate_config is not None for p in settings.policies)
    return _gpus(settings.vllm.devices, several), _gpus(settings.training_devices, ranks)


def _gpus(given: list[str], several: bool) -> set[str] | None:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them; None: it may be any.

    Where none are given it is the first, or the first ones (`several`), for which this returns None.
    """
    if given:
        return {gpu for gpus in given for gpu in gpus.split(",")}
    return None if several else {os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
