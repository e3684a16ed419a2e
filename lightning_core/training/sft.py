"""Supervised fine-tuning on the sequences that SQL chose as examples: TRL's SFTTrainer on exactly the sampled tokens.

Nothing is tokenized again: `input_ids` are a sequence's tokens, `labels` those of them that were sampled (-100 before
and between), by the same mask that policy gradients train on. The loss is the mean over the trained tokens of an
optimizer step, whatever micro-batches and ranks it is cut into. Rows are padded; prefix trees belong to the other trainer.
A job that was killed begins again, and comes to the same weights.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lightning_core.training.dataset import Sequence
from lightning_core.training.job import Job, Progress, check_job, derive_seed, import_trainer
from lightning_core.training.outcome import leave
from lightning_core.training.plan import MicroBatch, Step, line_up, plan_steps
from lightning_core.training.state import load_state, parameters_of
from lightning_core.training.weights import load_adapter, load_model, load_tokenizer, lora_config

OnStep = Callable[[dict[str, Any]], None]


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """Train on the examples; write the new version and the optimizer's state; return what `output/training.json` holds.

    Raises TrainingDataError, WeightsError, or TrainingError where loss or gradient stop being finite.
    """
    progress.phase("checking")
    facts, sequences = check_job(job)
    progress.phase("importing")
    import_trainer("lightning_core.training.sft_trainer")
    progress.phase("loading")
    tokenizer = load_tokenizer(job.source, facts.vocabulary)
    model = load_model(job.source)
    lora = job.policy_settings.lora
    if lora and job.weights is not None:
        model = load_adapter(model, job.weights)
    seed = derive_seed(job.seed, job.epoch)
    steps = plan_passes(job, sequences.rows, seed)
    optimizer_state, noted = load_state(job.state, job.epoch)
    taken: list[dict[str, Any]] = []

    def on_step(metrics: dict[str, Any]) -> None:
        taken.append(metrics)
        progress.write(metrics)

    progress.phase("preparing")
    with tempfile.TemporaryDirectory(prefix="lightning-training-") as scratch:
        from lightning_core.training.sft_trainer import ExampleTrainer

        trainer = ExampleTrainer(
            model,
            tokenizer,
            steps,
            job.policy_settings,
            scratch=Path(scratch),
            seed=seed,
            on_step=on_step,
            optimizer_state=optimizer_state,
            peft_config=lora_config(lora) if lora and job.weights is None else None,
        )
        parameters = parameters_of(trainer.model, job.state, noted)
        progress.phase("training")
        trainer.train()
    metrics = summary(taken, steps, len(sequences.rows), sequences.left_out)
    state = {"step": noted["step"] + len(steps), "parameters": parameters}
    return leave(job, progress, trainer, metrics, taken=taken, state=state, probed=sequences.rows[0].token_ids.tolist())


def plan_passes(job: Job, sequences: list[Sequence], seed: int) -> list[Step]:
    """The optimizer steps of all passes, each pass in an order of its own."""
    settings, passes = job.policy_settings.training, job.policy_settings.examples.passes
    return [
        step
        for number in range(passes)
        for step in plan_steps(
            sequences,
            steps=settings.steps_per_epoch,
            seed=seed + number,
            packing="none",
            budget=settings.tokens_per_micro_batch,
            loss_type="dapo",
            completion_limit=settings.max_sequence_tokens,
            rank=int(os.environ.get("RANK", "0")),
            ranks=int(os.environ.get("WORLD_SIZE", "1")),
        )
    ]


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


def queue(steps: list[Step]) -> list[list[dict[str, Any]]]:
    """All micro-batches in order, equally many a step."""
    return [rows(batch, step) for step, batch in line_up(steps)]


def summary(taken: list[dict[str, Any]], steps: list[Step], examples: int, left_out: dict[str, int]) -> dict[str, Any]:
    """Means over the steps, and what was trained on."""

    def mean(name: str) -> float:
        return sum(line[name] for line in taken) / len(taken)

    return {
        **{name: mean(name) for name in ("loss", "grad_norm", "entropy", "token_accuracy")},
        "steps": len(taken),
        "sequences": examples,
        "left_out": left_out,
        "tokens": sum(s.tokens for s in steps),
        "trained_tokens": sum(s.trained_tokens for s in steps),
    }
