"""One epoch's training of one policy: what goes in, and the work itself.

Runs in a process of its own, which returns its memory when done. Everything heavy is imported in `run_job`, after
the sequences and the weights were looked over, so bad input is told within a second or two.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lightning_core.config import PolicySettings
from lightning_core.training.dataset import Sequences, read_sequences
from lightning_core.training.errors import WeightsError
from lightning_core.training.plan import Packing, Step, line_up, plan_steps
from lightning_core.training.state import load_state, parameters_of, save_state
from lightning_core.training.weights import (
    ModelFacts,
    check_adapter_folder,
    check_model_folder,
    load_adapter,
    load_model,
    load_tokenizer,
    lora_config,
    save_weights,
    whole_folder,
)

logger = logging.getLogger(__name__)

# TRL and transformers import these where they find them, for features that are not used here.
_NOT_NEEDED = ("vllm", "mlflow", "sklearn", "tensorboard", "torchvision", "ray", "dask", "matplotlib", "wandb")


class Job(BaseModel):
    """A training job, as `python -m lightning_core.training job.json` reads it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    epoch: int = Field(ge=0)
    policy: str
    policy_settings: PolicySettings
    base_model: Path = Field(description="folder of the weights the run began with; the KL's reference")
    weights: Path | None = Field(None, description="version to go on from: full weights or an adapter; null: the base")
    sequences: Path = Field(description="Parquet file, see dataset.py")
    output: Path = Field(description="folder to write the new version into; there whole or not at all")
    state: Path = Field(description="folder of the optimizer's state, kept from epoch to epoch")
    progress: Path = Field(description="JSONL file that progress is appended to")
    seed: int = 0
    num_processes: int = Field(1, ge=1)
    accelerate_config: Path | None = None

    @property
    def source(self) -> Path:
        """The folder of full weights that training starts from (for an adapter: that lie under it)."""
        return self.base_model if self.policy_settings.lora or self.weights is None else self.weights


class Progress:
    """Appends lines to the job's progress file; on other ranks than the first it is silent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._silent = int(os.environ.get("RANK", "0")) != 0
        self.seconds: dict[str, float] = {}
        self._phase: tuple[str, float] | None = None

    def write(self, line: dict[str, Any]) -> None:
        if not self._silent:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def fail(self, why: str) -> None:
        """Say why the job ended; from any rank, since it may be the only one that knows."""
        self._silent = False
        self.write({"error": why})

    def phase(self, name: str | None) -> None:
        """Begin a phase (None: end the last one); seconds of each are kept."""
        now = time.perf_counter()
        if self._phase is not None:
            before, began = self._phase
            self.seconds[before] = round(self.seconds.get(before, 0.0) + now - began, 3)
        self._phase = None if name is None else (name, now)
        if name is not None:
            self.write({"phase": name})


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """Train; write the new version and the optimizer's state; return what `output/training.json` holds.

    Raises TrainingDataError, WeightsError, or TrainingError where loss or gradient stop being finite.
    """
    progress.phase("checking")
    facts, sequences = check_job(job)
    progress.phase("importing")
    import_trainer()
    progress.phase("loading")
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    settings = job.policy_settings.training
    tokenizer = load_tokenizer(job.source, facts.vocabulary)
    # Reference first and gone before the trained weights come: the two never share the memory.
    other_reference = settings.beta > 0 and job.policy_settings.lora is None
    model = load_model(job.base_model if other_reference else job.source)
    progress.phase("packing")
    seed = derive_seed(job.seed, job.epoch)
    packing = _packing(model, settings.packing, max(len(s) for s in sequences.rows))
    steps = plan_steps(
        sequences.rows,
        steps=settings.steps_per_epoch,
        seed=seed,
        packing=packing,
        budget=settings.tokens_per_micro_batch,
        loss_type=settings.loss_type,
        completion_limit=job.policy_settings.sampling.max_tokens or settings.max_sequence_tokens,
        rank=rank,
        ranks=ranks,
        rows_together=_has_accelerator(),
    )
    reference = None
    if other_reference:
        progress.phase("reference")
        reference = _base_scores(model, steps, job.policy_settings.sampling.temperature)
        del model
        progress.phase("loading")
        model = load_model(job.source)
    if job.policy_settings.lora and job.weights is not None:
        model = load_adapter(model, job.weights)
    optimizer_state, noted = load_state(job.state, job.epoch)
    return _train(job, progress, model, tokenizer, steps, sequences, packing, seed, reference, optimizer_state, noted)


def _train(
    job: Job,
    progress: Progress,
    model: Any,
    tokenizer: Any,
    steps: list[Step],
    sequences: Sequences,
    packing: Packing,
    seed: int,
    reference: Any,
    optimizer_state: dict[str, Any] | None,
    noted: dict[str, Any],
) -> dict[str, Any]:
    from lightning_core.training.trainer import SequenceTrainer

    lora = job.policy_settings.lora
    taken: list[dict[str, Any]] = []

    def on_step(metrics: dict[str, Any]) -> None:
        taken.append(metrics)
        progress.write(metrics)

    progress.phase("preparing")
    with tempfile.TemporaryDirectory(prefix="lightning-training-") as scratch:
        trainer = SequenceTrainer(
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
        if trainer.accelerator.num_processes > 1:
            logger.info("rank %d of %d processes", trainer.accelerator.process_index, trainer.accelerator.num_processes)
        parameters = parameters_of(trainer.model)
        if optimizer_state is not None and noted.get("parameters") != parameters:
            raise WeightsError(
                f"{job.state}: the optimizer state of epoch {noted.get('epoch')} belongs to other parameters; "
                "remove the folder to start AdamW afresh, or start a new run"
            )
        if job.policy_settings.training.beta > 0 and lora:
            progress.phase("reference")
            with trainer.model.disable_adapter():
                reference = trainer.score_all()
        trainer.reference = reference
        progress.phase("training")
        trainer.train()
        progress.phase("saving")
        metrics = _summary(taken, steps, sequences, packing)
        if trainer.accelerator.is_main_process:
            trained = trainer.accelerator.unwrap_model(trainer.model)
            state = trainer.optimizer.state_dict()
            save_state(job.state, job.epoch, state, {"step": noted["step"] + len(steps), "parameters": parameters})
            with whole_folder(job.output) as beside:
                save_weights(trained, job.source, beside)
                progress.phase(None)
                result = metrics | {"seconds": progress.seconds, "peak_rss_bytes": peak_rss(), "seed": seed}
                result |= {"run": job.run, "epoch": job.epoch, "policy": job.policy, "step": noted["step"] + len(steps)}
                (beside / "training.json").write_text(json.dumps(result, indent=2))
        trainer.accelerator.wait_for_everyone()
    return json.loads((job.output / "training.json").read_text())


def check_job(job: Job) -> tuple[ModelFacts, Sequences]:
    """Look weights and sequences over, before anything heavy is imported. Raises TrainingDataError, WeightsError."""
    facts = check_model_folder(job.source)
    lora, settings = job.policy_settings.lora, job.policy_settings.training
    if lora and job.weights is not None:
        check_adapter_folder(job.weights, lora)
    if settings.beta > 0 and job.base_model != job.source:
        check_model_folder(job.base_model)
    longest = min(settings.max_sequence_tokens, facts.positions or settings.max_sequence_tokens)
    sequences = read_sequences(job.sequences, policy=job.policy, vocabulary=facts.vocabulary, max_tokens=longest)
    return facts, sequences


def import_trainer(module: str = "lightning_core.training.trainer") -> None:
    """Import a trainer's module with TRL and what it needs, in two thirds of the time: packages it would only try out are hidden meanwhile."""
    # Weights are folders and nothing is asked of a hub; transformers, peft and TRL's telemetry would look there.
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
    # None makes both `import` and `find_spec` say that the package is not there.
    sys.modules.update(dict.fromkeys(hidden, None))  # type: ignore[arg-type]
    try:
        import_module(module)
    finally:
        for name in hidden:
            del sys.modules[name]


def _packing(model: Any, wanted: Packing, longest: int) -> Packing:
    if wanted == "none":
        return "none"
    from lightning_core.training.scoring import why_not_tree

    reason = why_not_tree(model, longest)
    if reason is None:
        return "tree"
    logger.warning("packing `tree` is not possible, training with padded rows: %s", reason)
    return "none"


def _base_scores(model: Any, steps: list[Step], temperature: float) -> Any:
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from lightning_core.training.trainer import score_queue

    add_fused_lm_head(model, temperature=temperature)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return score_queue(model.to(device), [batch for _, batch in line_up(steps)], device)


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _summary(taken: list[dict[str, Any]], steps: list[Step], sequences: Sequences, packing: Packing) -> dict[str, Any]:
    """Means over the steps; the mismatch is the first step's, before the weights moved."""

    def mean(name: str) -> float | None:
        values = [line[name] for line in taken if line[name] is not None]
        return sum(values) / len(values) if values else None

    tokens, unique = sum(s.tokens for s in steps), sum(s.unique_tokens for s in steps)
    return {
        **{name: mean(name) for name in ("loss", "grad_norm", "kl", "entropy", "clip_ratio")},
        "mismatch": taken[0]["mismatch"],
        "steps": len(steps),
        "sequences": len(sequences.rows),
        "left_out": sequences.left_out,
        "tokens": tokens,
        "unique_tokens": unique,
        "trained_tokens": sum(s.trained_tokens for s in steps),
        "unique_share": unique / tokens,
        "packing": packing,
    }


def derive_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch, the same whenever that epoch is tried again."""
    import numpy as np

    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] >> 1)


def peak_rss() -> int:
    """Most memory this process has held so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
