"""TRL's SFTTrainer, fed with planned micro-batches of exact tokens. Imported in the training process alone."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from lightning_core.config import PolicySettings
from lightning_core.training.arguments import common
from lightning_core.training.correction import from_all_ranks
from lightning_core.training.errors import TrainingError
from lightning_core.training.gather import put_optimizer_state
from lightning_core.training.plan import Step
from lightning_core.training.sft import OnStep, queue


class ExampleTrainer(SFTTrainer):
    """Trains `model` on planned steps, one optimizer step each.

    `on_step` gets a dict of metrics after each. Raises TrainingError where loss or gradient stop being finite; nothing
    has been saved then.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        steps: list[Step],
        policy: PolicySettings,
        *,
        scratch: Path,
        seed: int,
        on_step: OnStep = lambda metrics: None,
        optimizer_state: dict[str, Any] | None = None,
        peft_config: Any = None,
    ) -> None:
        self.planned = steps
        self.on_step = on_step
        self._batches = queue(steps)
        self._optimizer_state = optimizer_state
        # Trained tokens of each micro-batch, on this rank: TRL keeps one mean of each, over all ranks.
        self._weights = [sum(label != -100 for row in batch for label in row["labels"]) for batch in self._batches]
        self._step_began = time.perf_counter()
        super().__init__(
            model=model,
            args=SFTConfig(
                **common(policy, len(steps), len(self._batches) // len(steps), scratch, seed),
                max_length=None,  # what is too long was left out before
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list(self._batches[0]),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    def get_train_dataloader(self) -> Any:
        """The planned micro-batches in order, through TRL's own collator."""
        return DataLoader(self._batches, batch_size=1, collate_fn=lambda batch: self.data_collator(batch[0]))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._optimizer_state is not None:  # before the first step, when the optimizer is what it will be
            put_optimizer_state(self.optimizer, self._optimizer_state)
            self._optimizer_state = None
        return super().training_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called once an optimizer step (and once at the end, with what is ignored here)."""
        measured = {name: list(self._metrics["train"].get(name, [])) for name in ("entropy", "mean_token_accuracy")}
        super().log(logs, start_time)
        if "grad_norm" not in logs:
            return
        number, width = self.state.global_step - 1, self.args.gradient_accumulation_steps
        loss, grad_norm = float(logs["loss"]), float(logs["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"step {number}: the loss is {loss}, the gradient's norm {grad_norm}; lower `training.learning_rate`"
            )
        step, local = self.planned[number], self._weights[number * width : (number + 1) * width]
        weights = [sum(of_ranks) for of_ranks in zip(*from_all_ranks(local), strict=True)]
        now = time.perf_counter()
        self.on_step(
            {
                "step": self.state.global_step,
                "steps": len(self.planned),
                "loss": loss,
                "grad_norm": grad_norm,
                "entropy": _mean(measured["entropy"], weights),
                "token_accuracy": _mean(measured["mean_token_accuracy"], weights),
                "tokens": step.tokens,
                "unique_tokens": step.tokens,
                "trained_tokens": step.trained_tokens,
                "seconds": round(now - self._step_began, 4),
            }
        )
        self._step_began = now


def _mean(values: list[float], weights: list[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
