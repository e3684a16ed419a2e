"""Policy gradients on one epoch's sequences, start to end: TRL's GRPOTrainer on forests, resumable within."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from lightning_core.config import PolicySettings
from lightning_core.training.checkpoint import Checkpoints
from lightning_core.training.dataset import Sequences
from lightning_core.training.errors import TrainingError
from lightning_core.training.job import Job, Progress, check_job, derive_seed, import_trainer
from lightning_core.training.outcome import leave
from lightning_core.training.plan import Packing, Step, line_up, plan_steps
from lightning_core.training.schedule import learning_rate
from lightning_core.training.state import load_state, parameters_of
from lightning_core.training.weights import load_adapter, load_model, load_tokenizer, lora_config

logger = logging.getLogger(__name__)


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """Train; write the new version and the optimizer's state; return what `output/training.json` holds.

    Raises TrainingDataError, WeightsError, or TrainingError where loss or gradient stop being finite.
    """
    progress.phase("checking")
    facts, sequences = check_job(job)
    settings = job.policy_settings.training
    if learning_rate(settings, job.epoch, job.epochs, 0) == 0:
        raise TrainingError(
            f"`lr_schedule: {settings.lr_schedule}` has fallen to 0 at the end of `epochs` {job.epochs}, and this is epoch "
            f"{job.epoch} (from 0): nothing would be learned; raise `epochs`, or take `constant`"
        )
    progress.phase("importing")
    import_trainer()
    progress.phase("loading")
    tokenizer = load_tokenizer(job.source, facts.vocabulary)
    # Reference first and gone before the trained weights come: the two never share the memory.
    other_reference = settings.beta > 0 and settings.kl_reference == "base" and job.policy_settings.lora is None
    model = load_model(job.base_model if other_reference else job.source)
    progress.phase("packing")
    longest = max(len(s) for s in sequences.rows)
    packing, why_not = _packing(model, settings.packing, longest)
    if why_not is not None:
        progress.write({"warning": why_not})
    steps = _plan(job, sequences, packing)
    checkpoints = Checkpoints(job, parts=len(steps))
    found = checkpoints.newest()
    if found is not None:
        logger.info("%s: going on after step %d of %d", job.state, found.done, len(steps))
        progress.write({"resumed_at": found.done, "steps": len(steps)})
    done = found.done if found else 0
    reference = None
    if other_reference:
        progress.phase("reference")
        reference = _base_scores(model, steps[done:], job.policy_settings)
        del model
        progress.phase("loading")
        model = load_model(job.source)
        _packing(model, packing, longest)
    if job.policy_settings.lora and job.weights is not None:
        model = load_adapter(model, job.weights)
    work = _Work(job, progress, steps, checkpoints, found, reference)
    metrics = work.train(model, tokenizer)
    metrics |= _totals(steps, sequences) | {"packing": packing, "packing_why": why_not}
    return work.save(metrics, sequences.rows[0].token_ids.tolist())


class _Work:
    """The trainer of a job, from its making to what it leaves behind."""

    def __init__(
        self, job: Job, progress: Progress, steps: list[Step], checkpoints: Checkpoints, found: Any, reference: Any
    ) -> None:
        self.job, self.progress, self.steps = job, progress, steps
        self.checkpoints, self.found, self.reference = checkpoints, found, reference
        self.taken: list[dict[str, Any]] = found.taken if found else []
        self.seed = derive_seed(job.seed, job.epoch)

    def train(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        from lightning_core.training.start import look
        from lightning_core.training.trainer import SequenceTrainer

        job, done = self.job, self.found.done if self.found else 0
        settings, lora = job.policy_settings.training, job.policy_settings.lora
        optimizer_state, self.noted = load_state(job.state, job.epoch)
        if self.found is not None:
            optimizer_state = None  # the checkpoint brings its own; memory holds one of them
        self.progress.phase("preparing")
        with tempfile.TemporaryDirectory(prefix="lightning-training-") as scratch:
            self.trainer = trainer = SequenceTrainer(
                model,
                tokenizer,
                self.steps[done:],
                job.policy_settings,
                scratch=Path(scratch),
                seed=self.seed,
                first=done,
                rate=lambda step: learning_rate(settings, job.epoch, job.epochs, step),
                on_step=self._on_step,
                on_done=self._on_done,
                optimizer_state=optimizer_state,
                peft_config=lora_config(lora) if lora and job.weights is None else None,
            )
            if trainer.accelerator.num_processes > 1:
                logger.info(
                    "rank %d of %d processes", trainer.accelerator.process_index, trainer.accelerator.num_processes
                )
            self.parameters = parameters_of(trainer.model, job.state, self.noted)
            if "entropy" in self.noted:
                trainer.bonus.coef, trainer.bonus.last = self.noted["entropy"]
            if settings.beta or settings.importance_correction != "none" or settings.top_entropy_quantile < 1:
                self.progress.phase("reference")
            trainer.starts, trainer.informative, self.measured = look(trainer, settings, self.reference, bool(lora))
            if self.found is not None:
                trainer.resume = self.found
                self.measured = self.found.measured  # of all steps, not of those that are left
            self.progress.phase("training")
            self.kept = monotonic()
            trainer.train()
        return _summary(self.taken) | self.measured

    def save(self, metrics: dict[str, Any], probed: list[int]) -> dict[str, Any]:
        trainer, step = self.trainer, self.noted["step"] + len(self.steps)
        bonus = [trainer.bonus.coef, trainer.bonus.last]
        state = {"step": step, "parameters": self.parameters, "entropy": bonus}
        result = leave(self.job, self.progress, trainer, metrics, taken=self.taken, state=state, probed=probed)
        if trainer.accelerator.is_main_process:
            self.checkpoints.clear()
        return result

    def _on_step(self, metrics: dict[str, Any]) -> None:
        self.taken.append(metrics)
        self.progress.write(metrics)

    def _on_done(self, done: int) -> None:
        from lightning_core.training.correction import from_all_ranks

        seconds = self.job.policy_settings.training.checkpoint_seconds
        if seconds is None or done == len(self.steps):
            return
        # The first rank's clock decides: what is split over ranks is gathered by all of them.
        if from_all_ranks(monotonic() - self.kept >= seconds)[0]:
            self.checkpoints.save(self.trainer, done, self.taken, self.measured)
            self.kept = monotonic()


def _plan(job: Job, sequences: Sequences, packing: Packing) -> list[Step]:
    settings = job.policy_settings.training
    return plan_steps(
        sequences.rows,
        steps=settings.steps_per_epoch,
        seed=derive_seed(job.seed, job.epoch),
        packing=packing,
        budget=settings.tokens_per_micro_batch,
        loss_type=settings.loss_type,
        completion_limit=job.policy_settings.sampling.max_tokens or settings.max_sequence_tokens,
        normalization=settings.normalization,
        rank=int(os.environ.get("RANK", "0")),
        ranks=int(os.environ.get("WORLD_SIZE", "1")),
    )


def _packing(model: Any, wanted: Packing, longest: int) -> tuple[Packing, str | None]:
    """What is possible of what is wanted, and why not all of it."""
    if wanted == "none":
        return "none", None
    from lightning_core.training.scoring import why_not_packed

    reason = why_not_packed(model, longest)
    if reason is None:
        return wanted, None
    logger.warning("packing `%s` is not possible, training with padded rows: %s", wanted, reason)
    return "none", f"packing `{wanted}` is not possible: {reason}"


def _base_scores(model: Any, steps: list[Step], policy: PolicySettings) -> Any:
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from lightning_core.training.trainer import score_queue

    add_fused_lm_head(model, temperature=policy.sampling.temperature)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with torch.autocast(device.type, torch.bfloat16, enabled=policy.training.bf16):
        return [logps for logps, _ in score_queue(model.to(device), [batch for _, batch in line_up(steps)], device)]


def _summary(taken: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the steps; the mismatch is the first step's, before the weights moved."""

    def mean(name: str) -> float | None:
        values = [line[name] for line in taken if line[name] is not None]
        return sum(values) / len(values) if values else None

    means = ("loss", "grad_norm", "kl", "entropy", "clip_ratio", "ratio")
    return {
        **{name: mean(name) for name in means},
        **{name: taken[0][name] for name in ("mismatch", "mismatch_kl")},
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
