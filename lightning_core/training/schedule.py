"""What changes over a run: the learning rate, and the weight of the entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_core.config import TrainingSettings


def learning_rate(settings: TrainingSettings, epoch: int, epochs: int, step: int) -> float:
    """Of optimizer step `step` (from 0) of `epoch`, in a run of `epochs`.

    A pure function of the place in the run, so an epoch that is tried again, or killed and resumed, has the same rate.
    """
    at = epoch * settings.steps_per_epoch + step
    if at < settings.warmup_steps:
        return settings.learning_rate * (at + 1) / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.learning_rate
    whole = max(epochs * settings.steps_per_epoch - settings.warmup_steps, 1)
    done = min((at - settings.warmup_steps) / whole, 1.0)
    falling = 1 - done if settings.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * falling


@dataclass
class EntropyBonus:
    """The weight of the entropy, constant or (as in Skywork-OR1, and TRL) moved after each step towards a target."""

    settings: TrainingSettings
    coef: float
    last: float = math.inf  # entropy of the last step, nats a token

    @property
    def weight(self) -> float:
        if self.settings.use_adaptive_entropy and self.last > self.settings.entropy_target:
            return 0.0
        return self.coef

    def update(self, entropy: float) -> None:
        """After a step whose tokens had this mean entropy."""
        if not self.settings.use_adaptive_entropy:
            return
        s = self.settings
        if entropy <= s.entropy_target:
            self.coef = min(self.coef + s.entropy_coef_delta, s.entropy_coef_max)
        else:
            self.coef = max(self.coef - s.entropy_coef_delta, s.entropy_coef_min)
        self.last = entropy
