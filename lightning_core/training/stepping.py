"""What both trainers do around an optimizer step: TRL's classes differ, a `Course` is taken the same way."""

from __future__ import annotations

import time
from typing import Any

import torch

from lightning_core.config import TrainingSettings
from lightning_core.training.course import Course
from lightning_core.training.errors import TrainingDataError
from lightning_core.training.gather import put_optimizer_state, put_trained_tensors, reduce_in_float32
from lightning_core.training.schedule import EntropyBonus


class Stepping:
    """Mixin of transformers' Trainer that takes the steps of `course`."""

    course: Course
    settings: TrainingSettings
    bonus: EntropyBonus | None = None
    optimized: list[list[Any]]  # parameters, in the groups the optimizer was made with
    # Of transformers' Trainer:
    accelerator: Any
    args: Any
    model: Any
    optimizer: Any
    state: Any

    @property
    def done(self) -> int:
        """Optimizer steps of the epoch, with those a killed try took."""
        return self.course.first + int(self.state.global_step)

    @property
    def entropy(self) -> list[float]:
        """What the next step depends on beside weights and moments: where an adaptive entropy bonus has come to."""
        return [] if self._adaptive is None else [self._adaptive.coef, self._adaptive.last]

    @entropy.setter
    def entropy(self, was: list[float]) -> None:
        if self._adaptive is not None and was:
            self._adaptive.coef, self._adaptive.last = was

    @property
    def _adaptive(self) -> EntropyBonus | None:
        return self.bonus if self.settings.of_trl("use_adaptive_entropy") else None

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        reduce_in_float32(self.accelerator)

    def create_optimizer(self, *args: Any) -> Any:
        optimizer = super().create_optimizer(*args)  # type: ignore[misc]
        # DeepSpeed puts flat tensors in their place, and drops a group without any.
        self.optimized = [list(group["params"]) for group in optimizer.param_groups if group["params"]]
        return optimizer

    def begin_step(self, step: int) -> None:
        """Before the first pass of step `step` of the epoch."""
        course = self.course
        if step == course.first:
            course.begin(self)
            self._go_on()
        # Dropout depends on the step alone, so an epoch that is resumed draws what it would have drawn.
        torch.manual_seed((course.seed + 1_000_003 * step + 7919 * self.accelerator.process_index) % 2**63)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step)
        self.step_began = time.perf_counter()

    def told(self, step: int, steps: int) -> dict[str, Any]:
        """What the end of step `step` of `steps` tells of itself, by whichever trainer."""
        return {
            "step": step + 1,
            "steps": steps,
            "learning_rate": self.rate(step),
            "seconds": round(time.perf_counter() - self.step_began, 4),
        }

    def rate(self, step: int) -> float:
        return float(self.args.learning_rate) if self.course.rate is None else self.course.rate(step)

    def check_mismatch(self, less_likely: float) -> None:
        """Before the epoch's first optimizer step, when the weights are still those that sampled, or close to them."""
        limit = self.settings.max_mismatch
        if limit is not None and less_likely > limit:
            raise TrainingDataError(
                f"the trained tokens are {less_likely:.1f} nats less likely to these weights than their logprobs say: another "
                "model, or another tokenizer, sampled them. Take the weights they came from (`training.max_mismatch` is "
                f"{limit:g})"
            )

    def _go_on(self) -> None:
        state, found = self.course.optimizer_state, self.course.found
        if found is not None:
            weights, state = found.tensors()
            put_trained_tensors(self.accelerator.unwrap_model(self.model), weights)
            self.entropy = found.entropy
        if state is not None:
            put_optimizer_state(self, state)
        self.course.optimizer_state = self.course.found = None
