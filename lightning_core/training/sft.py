"""Supervised fine-tuning on the sequences that SQL chose as examples: TRL's SFTTrainer on exactly the sampled tokens.

Nothing is tokenized again: `input_ids` are a sequence's tokens, `labels` those of them that were sampled (-100 before
and between), by the same mask that policy gradients train on. The loss is the mean over the trained tokens of an
optimizer step, whatever micro-batches and ranks it is cut into. Rows are padded; prefix trees belong to the other trainer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_core.training.dataset import Sequence
from lightning_core.training.hardware import settled
from lightning_core.training.job import Job, Progress, check_job, derive_seed, import_trainer
from lightning_core.training.plan import MicroBatch, Step, line_up, plan_epoch
from lightning_core.training.resident import model_of
from lightning_core.training.steps import JobSteps, check_schedule


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """Train on the examples; write the new version and the optimizer's state; return what `output/training.json` holds.

    Raises TrainingDataError, WeightsError, or TrainingError where loss or gradient stop being finite.
    """
    progress.phase("checking")
    facts, sequences = check_job(job)
    check_schedule(job)
    progress.phase("importing")
    import_trainer("lightning_core.training.sft_trainer")
    from lightning_core.training.sft_trainer import ExampleTrainer

    job = settled(job)
    progress.phase("loading")
    tokenizer, model, made = model_of(job, facts.vocabulary)
    planned = plan_passes(job, sequences.rows, derive_seed(job.seed, job.epoch))
    steps = JobSteps(job, progress, len(planned), made)
    trainer = steps.train(ExampleTrainer, model, tokenizer, planned)
    metrics = summary(steps.taken, planned, len(sequences.rows), sequences.left_out)
    return steps.leave(trainer, metrics, sequences.rows)


def plan_passes(job: Job, sequences: list[Sequence], seed: int) -> list[Step]:
    """The optimizer steps of all passes, each pass in an order of its own."""
    policy = job.policy_settings
    return [step for n in range(policy.passes) for step in plan_epoch(policy, sequences, "none", seed + n)]


def rows(batch: MicroBatch | None, step: Step) -> list[dict[str, Any]]:
    """A micro-batch as TRL's collator takes it. One that only keeps ranks or steps even has rows without labels."""
    if batch is None:
        smallest = min((s for b in step.micro_batches for s in b.sequences), key=len)
        return [example(smallest, trained=False)]
    return [example(s, weight > 0) for s, weight in zip(batch.sequences, batch.weights, strict=True)]


def example(sequence: Sequence, trained: bool = True) -> dict[str, Any]:
    """Token ids and labels (-100 where nothing was sampled) of one sequence, each of its length."""
    labels = np.where(sequence.loss_mask & trained, sequence.token_ids, -100)
    return {"input_ids": sequence.token_ids.tolist(), "labels": labels.tolist()}


def queue(steps: list[Step], first: int = 0) -> list[list[dict[str, Any]]]:
    """All micro-batches from step `first` on, in order, equally many a step."""
    return [rows(batch, step) for step, batch in line_up(steps, first)]


def summary(taken: list[dict[str, Any]], steps: list[Step], examples: int, left_out: dict[str, int]) -> dict[str, Any]:
    """Means over the steps, and what was trained on."""

    def mean(name: str) -> float:
        return sum(line[name] for line in taken) / len(taken)

    return {
        **{name: mean(name) for name in ("loss", "grad_norm", "entropy", "token_accuracy")},
        "learning_rate": taken[-1]["learning_rate"],
        "steps": len(taken),
        "sequences": examples,
        "left_out": left_out,
        "tokens": sum(s.tokens for s in steps),
        "trained_tokens": sum(s.trained_tokens for s in steps),
    }
