"""Where an algorithm plugs in: an entry here, a SQL file and a function. Nothing else knows its name.

1. Which rollouts train, and how strongly: a SQL file (`estimator` names it) from the table `returns` to advantages.
   Everything it leaves out is counted with a reason; what it keeps becomes the table `sequences`.
2. What is done with those sequences: a function `(Job, Progress) -> metrics` (lightning_core/training/job.py), which runs in
   a process of its own. It reads `job.sequences`, starts from `job.weights` or `job.base_model`, writes `job.output` whole
   or not at all, with `training.json` (what it returns) in it, and reports its phases and optimizer steps to `progress`. If it
   cannot go on, it raises TrainingError and has written nothing.

Functions are named by module and imported when they are called: settings that are only looked at import no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lightning_core.config.trl import OF_THE_OPTIMIZER


@dataclass(frozen=True)
class Algorithm:
    function: str  # module:function
    # File of sql/advantages, where `advantages` and `min_spread` are an error; None: `advantages` says which.
    estimator: str | None = None
    imitates: bool = False  # its rows are examples: sampled in any way, for any number of `passes`
    reads: tuple[str, ...] | None = (
        None  # settings of `training` and of its `trl`, of which others are an error; None: all
    )

    def load(self) -> Callable[[Any, Any], dict[str, Any]]:
        """The function. Imports what it needs, but nothing heavy before it is called."""
        module, _, name = self.function.partition(":")
        function: Callable[[Any, Any], dict[str, Any]] = getattr(import_module(module), name)
        return function


_READ_BY_SFT = (
    "learning_rate", "lr_schedule", "warmup_steps", "steps_per_epoch", "min_groups_per_step", "tokens_per_micro_batch",
    "max_sequence_tokens", "max_mismatch", "bf16", "optimizer", "gradient_checkpointing", "checkpoint_seconds", "processes",
    "accelerate_config", "trl", *OF_THE_OPTIMIZER,
)  # fmt: skip

ALGORITHMS = {
    # All of policy gradients: advantages × the losses of TRL's GRPOTrainer.
    "grpo": Algorithm("lightning_core.training.grpo:run_job"),
    # The likelihood of chosen rollouts, by TRL's SFTTrainer.
    "sft": Algorithm(
        "lightning_core.training.sft:run_job",
        estimator="sft",
        imitates=True,
        reads=_READ_BY_SFT,
    ),
}
