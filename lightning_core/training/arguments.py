"""Our settings as TRL's: what every trainer is told, and its GRPOConfig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from lightning_core.config import PolicySettings
from lightning_core.training.hardware import computes_in_bf16

# TRL takes each token's loss by the first, and its reduction by it too. Those that differ in the reduction alone are one
# here: weights and normalizer, which `plan` works out, make the difference.
_FORMULA = {"cispo": "cispo", "sapo": "sapo", "vespo": "vespo"}
_CISPO_LIMIT = 5.0  # of the ratio, as its paper and TRL recommend; TRL's own default would be 0.2


def common(policy: PolicySettings, steps: int, width: int, scratch: Path, seed: int) -> dict[str, Any]:
    """What every trainer is told, for `steps` optimizer steps of `width` micro-batches."""
    settings = policy.training
    return {
        "output_dir": str(scratch),
        "seed": seed,
        "max_steps": steps,
        "gradient_accumulation_steps": width,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch_fused",
        "bf16": computes_in_bf16(settings),
        # Of mixtures of experts: it would be a mean over micro-batches, whatever they hold, and tries have no place for it.
        # Dense models have none, and TRL takes a 0 for either.
        "router_aux_loss_coef": 0.0,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if settings.gradient_checkpointing else None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # Not said outright, several processes on CPUs would each train alone.
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": False,
    }


def arguments(policy: PolicySettings, steps: int, width: int, scratch: Path, seed: int) -> GRPOConfig:
    """For `steps` optimizer steps of `width` micro-batches. Beta stays 0: TRL would load a reference of its own."""
    settings = policy.training
    cispo = settings.loss_type == "cispo"
    return GRPOConfig(
        **common(policy, steps, width, scratch, seed),
        # TRL checks these against each other; what is really in a micro-batch is the plan's decision.
        per_device_train_batch_size=2,
        num_generations=2,
        loss_type=_FORMULA.get(settings.loss_type, "dapo"),
        importance_sampling_level=settings.ratio_level,
        beta=0.0,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high or (_CISPO_LIMIT if cispo else None),
        delta=settings.delta,
        sapo_temperature_pos=settings.sapo_temperature_pos,
        sapo_temperature_neg=settings.sapo_temperature_neg,
        vespo_k_pos=settings.vespo_k_pos,
        vespo_lambda_pos=settings.vespo_lambda_pos,
        vespo_k_neg=settings.vespo_k_neg,
        vespo_lambda_neg=settings.vespo_lambda_neg,
        off_policy_mask_threshold=settings.off_policy_mask_threshold,
        use_bias_correction_kl=settings.use_bias_correction_kl,
        top_entropy_quantile=settings.top_entropy_quantile,
        temperature=policy.sampling.temperature,
    )
