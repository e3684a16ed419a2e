"""The optimizer steps of a job, whichever trainer takes them: told as they are taken, and gone on with after a kill."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from lightning_core.training.checkpoint import Checkpoints, Found
from lightning_core.training.errors import TrainingError
from lightning_core.training.job import Job, Progress, derive_seed
from lightning_core.training.outcome import leave
from lightning_core.training.plan import Step
from lightning_core.training.schedule import learning_rate
from lightning_core.training.state import load_state, parameters_of
from lightning_core.training.weights import lora_config

logger = logging.getLogger(__name__)


_SHARE = 0.05  # of the time, at most, goes into checkpoints after the first


def _nothing(*_: Any) -> None:
    pass


@dataclass
class Course:
    """How a trainer takes the optimizer steps of an epoch, and whom it tells. The functions get the trainer first."""

    seed: int = 0  # of dropout, together with the step's number
    first: int = 0  # steps that a killed try took
    rate: Callable[[int], float] | None = None  # learning rate of a step of the epoch; None: that of the settings
    begin: Callable[[Any], None] = _nothing  # before the first step, when model and optimizer are what they will be
    on_step: Callable[[Any, dict[str, Any]], None] = _nothing  # with the metrics of each step
    on_done: Callable[[Any, int], None] = _nothing  # then, with how many steps of the epoch are done
    optimizer_state: dict[str, Any] | None = None  # that the epoch before left
    found: Found | None = None  # the killed try's checkpoint; put into place after `begin`


class JobSteps:
    """The `count` optimizer steps of a job.

    `found`: the checkpoint to go on from, and `done` its steps; `taken`: the metrics of each step, those before it too;
    `measured`: of the whole epoch, before its first step.
    """

    def __init__(self, job: Job, progress: Progress, count: int) -> None:
        self.job, self.progress, self.count = job, progress, count
        self.checkpoints = Checkpoints(job, parts=count)
        self.found = self.checkpoints.newest()
        self.done, self.taken, self.measured = 0, [], {}  # type: int, list[dict[str, Any]], dict[str, float]
        if self.found is not None:
            self.done, self.taken, self.measured = self.found.done, self.found.taken, self.found.measured
            logger.info("%s: going on after step %d of %d", job.state, self.done, count)
            progress.write({"resumed_at": self.done, "steps": count})
        self._begin: Callable[[Any], dict[str, float]] = lambda trainer: {}

    def train(
        self,
        kind: Callable[..., Any],
        model: Any,
        tokenizer: Any,
        planned: list[Step],
        begin: Callable[[Any], dict[str, float]] | None = None,
    ) -> Any:
        """Take the steps with a trainer of the kind, which is returned. `begin(trainer)`: what it measured before the first."""
        self._begin = begin or self._begin
        lora = self.job.policy_settings.lora
        self.progress.phase("preparing")
        with tempfile.TemporaryDirectory(prefix="lightning-training-") as scratch:
            trainer = kind(
                model,
                tokenizer,
                planned,
                self.job.policy_settings,
                scratch=Path(scratch),
                course=self._course(),
                peft_config=lora_config(lora) if lora and self.job.weights is None else None,
            )
            self._train(trainer)
        return trainer

    def _course(self) -> Course:
        optimizer_state, self.noted = self._state()
        return Course(
            seed=derive_seed(self.job.seed, self.job.epoch),
            first=self.done,
            rate=lambda step: rate(self.job, step, taken=self.noted["step"] + step),
            begin=self._on_begin,
            on_step=self._on_step,
            on_done=self._on_done,
            # A checkpoint brings its own; memory holds one of them.
            optimizer_state=None if self.found else optimizer_state,
            found=self.found,
        )

    def _state(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        made_in = self.job.made_in
        kept = None if made_in is None else load_state(self.job.state, made_in, self.job.version)
        if made_in is not None and kept is None:
            why = f"{self.job.state}: the optimizer state that epoch {made_in} left with these weights is not kept any more: "
            why += "AdamW starts afresh"
            logger.warning(why)
            self.progress.write({"warning": why})
        return kept or (None, {"step": 0})

    def _train(self, trainer: Any) -> None:
        if trainer.accelerator.num_processes > 1:
            logger.info("rank %d of %d processes", trainer.accelerator.process_index, trainer.accelerator.num_processes)
        self.parameters = parameters_of(trainer.model, self.job.state, self.noted)
        trainer.entropy = self.noted.get("entropy", [])
        trainer.train()

    def leave(self, trainer: Any, metrics: dict[str, Any], probed: list[int]) -> dict[str, Any]:
        """Write what `outcome.leave` does. The last checkpoint stays until the version is published."""
        state = {"step": self.noted["step"] + self.count, "parameters": self.parameters}
        # Where this epoch has no use for it, a later one may.
        state["entropy"] = trainer.entropy or self.noted.get("entropy", [])
        metrics = metrics | self.measured
        return leave(self.job, self.progress, trainer, metrics, taken=self.taken, state=state, probed=probed)

    def _on_begin(self, trainer: Any) -> None:
        measured = self._begin(trainer)
        if self.found is None:  # else it is of the steps that are left alone
            self.measured = measured
        self.progress.phase("training")
        self.kept, self.took = monotonic(), 0.0

    def _on_step(self, trainer: Any, metrics: dict[str, Any]) -> None:
        self.taken.append(metrics)
        self.progress.write(metrics)

    def _on_done(self, trainer: Any, done: int) -> None:
        from lightning_core.training.correction import from_all_ranks

        seconds = self.job.policy_settings.training.checkpoint_seconds
        if seconds is None or done == self.count:
            return
        # The first rank's clock decides: what is split over ranks is gathered by all of them.
        began = monotonic()
        due = max(seconds, self.took / _SHARE) if seconds else 0.0
        if from_all_ranks(began - self.kept >= due)[0]:
            self.checkpoints.save(trainer, done, self.taken, self.measured)
            self.kept = monotonic()
            self.took = self.kept - began


def rate(job: Job, step: int, taken: int) -> float:
    """The learning rate of a step of the job's epoch, `taken` optimizer steps into the run.

    What is left of the schedule depends on the place in the run alone, so an epoch that is tried again has the same rates.
    """
    policy = job.policy_settings
    of_epoch = policy.training.steps_per_epoch * policy.passes
    return learning_rate(policy.training, job.epoch * of_epoch + step, job.epochs * of_epoch, taken)


def check_schedule(job: Job) -> None:
    """Raises TrainingError where the job's epoch lies past the end of the learning rate's schedule."""
    if rate(job, 0, taken=0) == 0:
        raise TrainingError(
            f"`lr_schedule: {job.policy_settings.training.lr_schedule}` has fallen to 0 at the end of `epochs` {job.epochs}, "
            f"and this is epoch {job.epoch} (from 0): nothing would be learned; raise `epochs`, or take `constant`"
        )
