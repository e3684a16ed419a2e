"""One epoch's training of a policy, start to end, whatever the algorithm: TRL's GRPOTrainer on forests, resumable within."""

from __future__ import annotations

import logging
from typing import Any

from lightning_core.config import PolicySettings
from lightning_core.training.dataset import Sequences
from lightning_core.training.hardware import computes_in_bf16, is_split, own_device, settled, weights_kind
from lightning_core.training.job import Job, Progress, check_job, derive_seed, import_trainer
from lightning_core.training.micro_batches import Packing, Step, line_up, plan_epoch
from lightning_core.training.resident import model_of
from lightning_core.training.steps import JobSteps, check_schedule
from lightning_core.training.weights import free_memory, load_model

logger = logging.getLogger(__name__)


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """Train; write the new version and the optimizer's state; return what `output/training.json` holds.

    Raises TrainingDataError, WeightsError, or TrainingError where loss or gradient stop being finite.
    """
    progress.phase("checking")
    facts, sequences = check_job(job)
    check_schedule(job)
    progress.phase("importing")
    import_trainer()
    job = settled(job)
    progress.phase("loading")
    # Reference first and gone before the trained weights come: the two never share the memory.
    tokenizer, model, made = model_of(job, facts.vocabulary)
    progress.phase("packing")
    longest = max(len(s) for s in sequences.rows)
    seed, policy = derive_seed(job.seed, job.epoch), job.policy_settings
    packing, why_not = _packing(model, policy.training.packing, longest)
    if why_not is not None:
        progress.write({"warning": why_not})
    # Each pass over examples in an order of its own.
    passes = [plan_epoch(policy, sequences.rows, packing, seed + n) for n in range(policy.passes)]
    planned = [step for of_pass in passes for step in of_pass]
    steps = JobSteps(job, progress, len(planned), made)
    if job.other_reference:
        progress.phase("reference")
        steps.reference = _base_scores(model, planned, steps.first, policy)
        del model
        free_memory()
        progress.phase("loading")
        model = load_model(job.source, weights_kind(job))
        _packing(model, packing, longest)
    trainer = steps.train(model, tokenizer, planned)
    metrics = _summary(steps.taken, trainer.of_algorithm, policy.imitates) | steps.weighed | _totals(planned, sequences)
    metrics |= {"packing": packing, "packing_why": why_not}
    return steps.leave(trainer, metrics, sequences.rows)


def _packing(model: Any, wanted: Packing, longest: int) -> tuple[Packing, str | None]:
    """Return the wanted packing, or `none` and why the wanted one is not possible."""
    if wanted == "none":
        return "none", None
    from lightning_core.training.scoring import why_not_packed

    if not is_split():
        model.to(own_device())  # GPUs attend by other code than CPUs
    reason = why_not_packed(model, longest)
    if reason is None:
        return wanted, None
    logger.warning("packing `%s` is not possible, training with padded rows: %s", wanted, reason)
    return "none", f"packing `{wanted}` is not possible: {reason}"


def _base_scores(model: Any, steps: list[Step], first: int, policy: PolicySettings) -> Any:
    import torch

    from lightning_core.training.trainer import score_queue
    from lightning_core.training.trl_bridge import add_head

    add_head(model, policy)
    device = own_device()
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(policy.training)):
        return [
            logps for logps, _ in score_queue(model.to(device), [batch for _, batch in line_up(steps, first)], device)
        ]


def _summary(taken: list[dict[str, Any]], of_algorithm: list[str], imitates: bool) -> dict[str, Any]:
    """Return means over the steps; the mismatch, and how unlikely its tokens were, are the first step's, before the
    weights moved. Of examples nothing is compared with how they were sampled."""

    def mean(name: str) -> float | None:
        values = [line[name] for line in taken if line[name] is not None]
        return sum(values) / len(values) if values else None

    means = ["loss", "grad_norm", "entropy", *of_algorithm]
    if imitates:
        return {name: mean(name) for name in means} | {"learning_rate": taken[-1]["learning_rate"]}
    means += ["kl", "clip_ratio", "ratio", "importance_ratio", "importance_bounded"]
    return {
        **{name: mean(name) for name in means},
        **{name: taken[0][name] for name in ("mismatch", "mismatch_kl", "unlikely")},
        **{name: taken[-1][name] for name in ("learning_rate", "entropy_coef")},
    }


def _totals(steps: list[Step], sequences: Sequences) -> dict[str, Any]:
    tokens, unique = sum(s.tokens for s in steps), sum(s.unique_tokens for s in steps)
    return {
        "steps": len(steps),
        "sequences": len(sequences.rows),
        "left_out": sequences.left_out,
        "tokens": tokens,
        "unique_tokens": unique,
        "trained_tokens": sum(s.trained_tokens for s in steps),
        "unique_share": unique / tokens,
    }
