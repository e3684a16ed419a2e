"""What changes over a run: the learning rate, and the weight of the entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_core.config import TrainingSettings

DECAY = 1 / 3  # of the steps after the warm-up, in which `wsd` falls


def learning_rate(settings: TrainingSettings, at: int, whole: int, taken: int) -> float:
    """Return the rate of a step whose place is `at` (from 0) among the run's `whole`, after `taken` optimizer steps.

    The two differ where epochs were skipped: AdamW warms up by the steps it took, the schedule ends with the run.
    """
    warm = min((taken + 1) / settings.warmup_steps, 1.0) if settings.warmup_steps else 1.0
    if settings.lr_schedule == "constant":
        return settings.learning_rate * warm
    done = min(max(at - settings.warmup_steps, 0) / max(whole - settings.warmup_steps, 1), 1.0)
    falling = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "wsd": min((1 - done) / DECAY, 1.0)}
    return settings.learning_rate * warm * falling[settings.lr_schedule]


@dataclass
class EntropyBonus:
    """The weight of the entropy, constant or (as in Skywork-OR1, and TRL) moved after each step towards a target."""

    settings: TrainingSettings
    coef: float
    last: float = math.inf  # entropy of the last step, nats a token

    @property
    def weight(self) -> float:
        of = self.settings.of_trl
        return 0.0 if of("use_adaptive_entropy") and self.last > of("entropy_target") else self.coef

    def update(self, entropy: float) -> None:
        """Move the weight after a step whose tokens had this mean entropy."""
        of = self.settings.of_trl
        if not of("use_adaptive_entropy"):
            return
        if entropy <= of("entropy_target"):
            self.coef = min(self.coef + of("entropy_coef_delta"), of("entropy_coef_max"))
        else:
            self.coef = max(self.coef - of("entropy_coef_delta"), of("entropy_coef_min"))
        self.last = entropy
