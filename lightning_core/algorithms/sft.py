"""Supervised finetuning: the likelihood of the sampled tokens of the rollouts that sql/advantages/sft.sql takes as examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_core.algorithms.algorithm import Algorithm, Tokens

if TYPE_CHECKING:
    import torch


class Sft(Algorithm):
    imitates = True
    reads = (
        "learning_rate", "lr_schedule", "warmup_steps", "steps_per_epoch", "min_groups_per_step", "packing",
        "tokens_per_micro_batch", "max_sequence_tokens", "max_mismatch", "bf16", "optimizer", "gradient_checkpointing",
        "checkpoint_seconds", "processes", "accelerate_config", "trl",
    )  # fmt: skip

    def select(self) -> str:
        return "sft"

    def loss(self, tokens: Tokens) -> torch.Tensor:
        """Return the mean negative log-likelihood of the step's tokens."""
        return tokens.mean(-tokens.logprobs)
