"""One epoch's training of one policy: what goes in, how it tells its progress, and what every algorithm does first.

Runs in a process of its own. Nothing heavy is imported before the sequences and the weights were looked over, so an error
in them is reported within a second or two.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lightning_core.config import PolicySettings, TrainingSettings
from lightning_core.training.dataset import Sequences, read_sequences
from lightning_core.training.errors import TrainingError
from lightning_core.training.weights import (
    ModelFacts,
    check_adapter_folder,
    check_model_folder,
    check_same_model,
)

# TRL and transformers import these where they find them, for features that are not used here.
_NOT_NEEDED = (
    "vllm", "mlflow", "sklearn", "tensorboard", "torchvision", "ray", "dask", "matplotlib", "wandb", "boto3", "scipy",
    "torchao",
)  # fmt: skip


class Job(BaseModel):
    """A training job, as `python -m lightning_core.training job.json` reads it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    epoch: int = Field(ge=0)
    policy: str
    policy_settings: PolicySettings
    base_model: Path = Field(description="folder of the weights the run began with; the KL's reference")
    weights: Path | None = Field(None, description="version to go on from: full weights or an adapter; null: the base")
    made_in: int | None = Field(
        None,
        ge=0,
        description="epoch of the run that made `weights`, whose optimizer state goes on; null: AdamW begins",
    )
    version: str | None = Field(
        None,
        description="name of `weights`; a state that was left with another version is not gone on with; null: not looked at",
    )
    sampled_in: str = Field(
        "float32",
        description="what vLLM computed in as it sampled: `float32`, `bfloat16`, `float16`, or `auto`, as it chose",
    )
    head_in_float32: bool = Field(
        False, description="whether vLLM's LM head computed in float32; the trainer's does too"
    )
    sequences: Path = Field(description="Parquet file, see dataset.py")
    calls: Path | None = Field(
        None, description="Parquet file of sql/tokens/sequence_calls.sql, for an algorithm that weighs tokens"
    )
    output: Path = Field(description="folder to write the new version into; there whole or not at all")
    state: Path = Field(description="folder of the optimizer's state, kept from epoch to epoch")
    progress: Path = Field(description="JSONL file that progress is appended to")
    seed: int = 0
    epochs: int = Field(1, ge=1, description="of the run, over which the learning rate is scheduled")
    device: str | None = Field(
        None, description="value of CUDA_VISIBLE_DEVICES; null: the first, of several processes all"
    )
    beside: int = Field(1, ge=1, description="trainings that share the machine's processors at one time")

    @property
    def source(self) -> Path:
        """Return the folder of full weights that training starts from (for an adapter: that lie under it)."""
        return self.base_model if self.policy_settings.lora or self.weights is None else self.weights

    @property
    def other_reference(self) -> bool:
        """Return whether the KL's reference is a model of its own: other weights than those that are trained, and none
        under an adapter."""
        training = self.policy_settings.training
        return training.beta > 0 and training.kl_reference == "base" and self.policy_settings.lora is None

    @property
    def base_model_name(self) -> str:
        """Return the hub id that the settings have for the base, which holds on other machines too; else its folder."""
        name = self.policy_settings.model
        return str(self.base_model) if Path(name).expanduser().exists() else name


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
        """Report why the job ended; from any rank, since it may be the only one that knows."""
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


def check_job(job: Job) -> tuple[ModelFacts, Sequences]:
    """Check weights and sequences, before anything heavy is imported.

    Raises TrainingError where the settings and the launcher's are at odds, TrainingDataError, WeightsError.
    """
    _check_precision(job.policy_settings.training)
    facts = check_model_folder(job.source)
    lora, settings = job.policy_settings.lora, job.policy_settings.training
    if lora and job.weights is not None:
        check_adapter_folder(job.weights, lora)
    if job.base_model != job.source:
        if settings.beta > 0:
            check_model_folder(job.base_model)
        check_same_model(job.source, job.base_model)
    longest = min(settings.max_sequence_tokens, facts.positions or settings.max_sequence_tokens)
    sequences = read_sequences(job.sequences, policy=job.policy, vocabulary=facts.vocabulary, max_tokens=longest)
    return facts, sequences


def _check_precision(settings: TrainingSettings) -> None:
    """Check that the launcher's precision fits the settings': transformers would follow the accelerate file, while what
    is scored before the training follows the settings."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", "bf16") or (launched == "bf16" and settings.bf16 is False):
        said = (
            f"{settings.accelerate_config}: `mixed_precision: {launched}`"
            if settings.accelerate_config
            else f"ACCELERATE_MIXED_PRECISION is `{launched}` in the environment"
        )
        raise TrainingError(
            f"{said}, while `training.bf16` is {json.dumps(settings.bf16)}; make it 'no' there, and choose by `training.bf16`"
        )


def import_trainer() -> None:
    """Import the trainer's module with TRL and what it needs, in two thirds of the time: packages it would only try out
    are hidden meanwhile."""
    # Weights are folders and nothing is asked of a hub; transformers, peft and TRL's telemetry would look there.
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Its file has a number of micro-batches, which is the plan's to decide.
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "auto"
    hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
    # None makes both `import` and `find_spec` say that the package is not there.
    sys.modules.update(dict.fromkeys(hidden, None))  # type: ignore[arg-type]
    try:
        import_module("lightning_core.training.trainer")
    finally:
        for name in hidden:
            if name != "torchao":  # which peft looks for when it makes an adapter; `use_torchao` brings it back
                del sys.modules[name]


def use_torchao() -> None:
    """Import what `optimizer: adamw_8bit` needs; its tensors are read from files only when it is there."""
    if sys.modules.get("torchao", "") is None:
        del sys.modules["torchao"]
    try:
        import_module("torchao.optim")
    except ImportError as error:
        raise TrainingError(
            f"`training.optimizer: adamw_8bit` needs torchao, which is not installed here: {error}"
        ) from error


def derive_seed(seed: int, epoch: int) -> int:
    """Derive a seed of its own for each epoch, the same whenever that epoch is tried again."""
    import numpy as np

    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] >> 1)


def peak_rss() -> int:
    """Return the most memory this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
