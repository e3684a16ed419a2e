"""What can go wrong in a training job, by whose remedy it is. Light: the launching process imports this too."""

from __future__ import annotations

from lightning_core.errors import LightningError

LESS_MEMORY = (
    "lower `training.tokens_per_micro_batch`, set `training.gradient_checkpointing: true` or `training.optimizer: adamw_8bit`, "
    "or train an adapter (`lora`)"
)


class TrainingError(LightningError):
    """A training job that cannot go on. The message says what was wrong, where, and the remedy."""


class TrainingDataError(TrainingError):
    """Sequences that cannot be trained on: names the sequence and its rollout."""


class WeightsError(TrainingError):
    """A folder of weights (or of optimizer state) that is missing, half written, or does not fit the rest."""


class TrainingFailed(TrainingError):
    """Raised by `launch.train`: the training process ended without a result."""
