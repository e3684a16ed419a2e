"""Where an algorithm plugs in: two places, and nothing else knows its name.

1. Which rollouts train, and how strongly: a SQL file (`PolicySettings.estimator` names it) from the table `returns` to
   advantages. Everything it leaves out is counted with a reason; what it keeps becomes the table `sequences`.
2. What is done with those sequences: a function `(job, progress) -> metrics`, named here, which runs in a process of its
   own. It reads `job.sequences`, goes on from `job.weights` or `job.base_model`, writes `job.output` whole or not at
   all, with `training.json` (what it returns) in it, and tells `progress` its phases and optimizer steps. It raises
   TrainingError, and has written nothing then, where it cannot go on.

Functions are named by module and imported when they are called: a flow that only looks them up imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lightning_core.training.job import Job, Progress

Train = Callable[[Job, Progress], dict[str, Any]]

ALGORITHMS = {
    "grpo": "lightning_core.training.grpo:run_job",  # all of policy gradients: advantages × the losses of TRL's GRPOTrainer
    "sft": "lightning_core.training.sft:run_job",  # the likelihood of chosen rollouts, by TRL's SFTTrainer
}


def algorithm(name: str) -> Train:
    """The function that trains by `PolicySettings.algorithm`."""
    module, _, function = ALGORITHMS[name].partition(":")
    train: Train = getattr(import_module(module), function)
    return train
