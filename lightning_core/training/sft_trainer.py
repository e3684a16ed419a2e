"""The likelihood of examples on planned steps. Imported in the training process alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from lightning_core.config import PolicySettings
from lightning_core.training.correction import from_all_ranks
from lightning_core.training.errors import TrainingError
from lightning_core.training.plan import Step
from lightning_core.training.sft import queue
from lightning_core.training.steps import Stepping, StepPlan
from lightning_core.training.trl_bridge import PlannedSFTTrainer, sft_arguments


class ExampleTrainer(Stepping, PlannedSFTTrainer):
    """Trains `model` on planned steps, one optimizer step each, as `step_plan` says.

    Raises TrainingError where loss or gradient stop being finite; nothing has been saved then.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        steps: list[Step],
        policy: PolicySettings,
        *,
        scratch: Path,
        step_plan: StepPlan,
        peft_config: Any = None,
    ) -> None:
        self.planned = steps
        self.step_plan = step_plan
        batches = queue(steps, step_plan.first)
        self.settings = policy.training
        self._passes = 0  # micro-batches begun
        self._first_loss = 0.0  # of the epoch's first step
        # Trained tokens of each micro-batch, on this rank: TRL keeps one mean of each, over all ranks.
        self._weights = [sum(label != -100 for row in batch for label in row["labels"]) for batch in batches]
        left = len(steps) - step_plan.first
        args = sft_arguments(policy, left, len(batches) // left, scratch, step_plan.seed)
        super().__init__(model, tokenizer, args, batches, peft_config)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        step, at = divmod(self._passes, self.args.gradient_accumulation_steps)
        if at == 0:
            self.begin_step(self.step_plan.first + step)
        self._passes += 1
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if self._passes <= self.args.gradient_accumulation_steps and self.step_plan.first == 0:
            self._first_loss += float(loss)
            if self._passes == self.args.gradient_accumulation_steps:
                self._compare_with_sampling()
        return loss

    def _compare_with_sampling(self) -> None:
        step = self.planned[0]
        if any(s.tokenized for batch in step.micro_batches for s in batch.sequences):
            return  # a text was tokenized by these weights' own tokenizer, and nothing says how likely it was
        likely = sum(
            float(s.logprobs[s.loss_mask].sum())
            for batch in step.micro_batches
            for s, weight in zip(batch.sequences, batch.weights, strict=True)
            if weight > 0
        )
        shares = from_all_ranks((self._first_loss, likely))
        # Each rank's loss is its sum over the mean number of tokens a rank, so that their mean is the step's.
        loss = sum(loss for loss, _ in shares) / len(shares)
        self.check_mismatch(loss + sum(likely for _, likely in shares) / step.trained_tokens)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called once an optimizer step (and once at the end, with what is ignored here)."""
        measured = self.measured()
        super().log(logs, start_time)
        if "grad_norm" not in logs:
            return
        number, width = self.state.global_step - 1, self.args.gradient_accumulation_steps
        loss, grad_norm = float(logs["loss"]), float(logs["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"step {self.done - 1}: the loss is {loss}, the gradient's norm {grad_norm}; lower `training.learning_rate`"
            )
        step, local = self.planned[self.done - 1], self._weights[number * width : (number + 1) * width]
        weights = [sum(of_ranks) for of_ranks in zip(*from_all_ranks(local), strict=True)]
        self.report(
            len(self.planned),
            {
                "loss": loss,
                "grad_norm": grad_norm,
                "entropy": _mean(measured["entropy"], weights),
                "token_accuracy": _mean(measured["mean_token_accuracy"], weights),
                "tokens": step.tokens,
                "unique_tokens": step.tokens,
                "trained_tokens": step.trained_tokens,
            },
        )
        self.step_plan.on_done(self, self.done)


def _mean(values: list[float], weights: list[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
