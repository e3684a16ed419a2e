"""Where a rank computes, and in what numbers. Imports torch when asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from lightning_core.config import TrainingSettings
from lightning_core.process.linux import multiplies_bf16

if TYPE_CHECKING:
    from lightning_core.training.job import Job


def own_device() -> Any:
    """Return this rank's torch.device, made current: TRL's kernels are launched there, wherever their tensors are."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    torch.accelerator.set_device_index(number)
    return torch.device(kind.type, number)


def is_split() -> bool:
    """Return whether accelerate splits the weights over the ranks, so that none need have room for all of them."""
    return _accelerate_uses("FSDP") or _accelerate_uses("DEEPSPEED")


def _accelerate_uses(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"


def computes_in_bf16(settings: TrainingSettings, sampled_in: str = "float32") -> bool:
    """Return whether to compute in bf16: as the settings say; else where the accelerate file says `bf16`, on a GPU that
    has it (not by itself with DeepSpeed, whose was not tried), and on a CPU that has it if the server sampled in it
    too."""
    import torch

    if settings.bf16 is not None:
        return settings.bf16
    by_file = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    if by_file or _accelerate_uses("DEEPSPEED"):
        return by_file
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return sampled_in == "bfloat16" and not torch.accelerator.is_available() and multiplies_bf16()


def settled(job: Job) -> Job:
    """Return the job with what the settings leave open: whether it computes in bf16, and its LM head in float32 as the
    sampler's, and whether tokens are corrected. Tokens of examples are not; others are unless sampler and trainer both
    computed in float32: with 16-bit numbers on either side they disagree before any update."""
    training = job.policy_settings.training
    bf16 = computes_in_bf16(training, job.sampled_in)
    uneven = bf16 or job.sampled_in != "float32"
    correction = "token_truncate" if uneven and not job.policy_settings.imitates else "none"
    update: dict[str, Any] = {"bf16": bf16, "importance_correction": training.importance_correction or correction}
    if job.head_in_float32:
        update["trl"] = training.trl | {"cast_lm_head_to_fp32": True}
    policy = job.policy_settings.model_copy(update={"training": training.model_copy(update=update)})
    return job.model_copy(update={"policy_settings": policy})


def checkpoints_gradients(settings: TrainingSettings) -> bool:
    """Return whether to checkpoint gradients: as the settings say; else on a GPU, unless the accelerate file has FSDP
    do that (`fsdp_activation_checkpointing`)."""
    import torch

    if settings.gradient_checkpointing is not None:
        return settings.gradient_checkpointing
    by_fsdp = os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "").lower() == "true"
    return torch.cuda.is_available() and not by_fsdp


def weights_kind(job: Job) -> Literal["float32", "bfloat16"]:
    """Return the dtype that the model is loaded in. Weights that are trained are float32, of which bf16 would round
    small steps away; those that lie still under an adapter are what they are computed with. (FSDP2 takes one kind
    alone; DeepSpeed was not tried with two.)"""
    frozen = job.policy_settings.lora is not None and not is_split()
    return "bfloat16" if frozen and computes_in_bf16(job.policy_settings.training) else "float32"
