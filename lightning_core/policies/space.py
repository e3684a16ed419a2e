"""The disk that a run will take, from its settings and its model, and what a home takes.

Weights and AdamW's two moments are float32: a version is 4 bytes a trained parameter, an optimizer state 8. What is kept of
versions: prune.py; of optimizer states: the two newest of each policy (training/state.py).
"""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from lightning_core.config import PolicySettings, Settings
from lightning_core.policies.model import config_files, models_folder
from lightning_core.policies.tensor_files import parameters, tensor_shapes

_VERSION, _MOMENTS = 4, 8  # bytes a trained parameter
_ROLLOUT = 35_000  # bytes in the lake: 10,000 rollouts of 14 spans are 0.35 GB
_BESIDE = 50_000_000  # Prefect's and MLflow's databases, logs
# What of a home each part of `space_taken` is; the first that fits.
_PARTS = (
    ("models", re.compile(r"policies/[^/]+/v0000/")),
    ("policies", re.compile(r"policies/")),
    ("optimizer states", re.compile(r"training/")),
    ("lake", re.compile(r"(lake|spool)/")),
    ("logs", re.compile(r"logs/")),
    ("prefect", re.compile(r"prefect/")),
    ("mlflow", re.compile(r"mlflow")),
)


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run takes, about."""

    model: float  # of weights to fetch, and of their copy in `home` where that is on another file system
    versions: float
    optimizer: float
    rollouts: float  # with logs and databases
    meanwhile: float  # more than that at most while a policy is trained: a version, a state and checkpoints are written

    @property
    def at_end(self) -> float:
        return self.model + self.versions + self.optimizer + self.rollouts

    @property
    def at_most(self) -> float:
        return self.at_end + self.meanwhile

    def __str__(self) -> str:
        parts = {"model": self.model, "versions": self.versions, "optimizer states": self.optimizer}
        parts |= {"rollouts and logs": self.rollouts}
        return f"about {gb(self.at_end)} at its end ({_listed(parts)}), {gb(self.at_most)} at most meanwhile"


def estimate(settings: Settings, held_out: int = 0) -> Estimate | None:
    """Return what all epochs of a run take, begun anew; None where its model's size is not known before it is fetched.

    `held_out`: number of held-out tasks, where `evaluation.limit` does not bound it. Reads headers of weights only.
    """
    folder = model_folder(settings.policies[0].model, settings.models)
    sizes = [trained_parameters(policy, folder) for policy in settings.policies]
    base = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder else 4 * (sizes[0] or 0)
    versions = optimizer = 0.0
    meanwhile = []
    for policy, size in zip(settings.policies, sizes, strict=True):
        if size is None:
            return None
        trained = sum(policy.trains_in(epoch) for epoch in range(settings.epochs))
        versions += _VERSION * size * _kept(settings.store.keep_every, trained, settings.evaluates)
        optimizer += _MOMENTS * size * min(2, trained)
        checkpoint = _VERSION + _MOMENTS if policy.training.checkpoint_seconds is not None else 0
        meanwhile.append(size * max(_VERSION + _MOMENTS + checkpoint, 2 * checkpoint) * min(1, trained))
    source = folder or settings.models or models_folder()
    copied = _device(source) != _device(settings.home) and any(policy.lora is None for policy in settings.policies)
    at_one_time = max(len(settings.training_devices), 1)
    return Estimate(
        model=base * ((folder is None) + copied),
        versions=versions,
        optimizer=optimizer,
        rollouts=_ROLLOUT * _rollouts(settings, held_out) + _BESIDE,
        meanwhile=sum(sorted(meanwhile)[-at_one_time:]),
    )


def free(home: Path) -> int:
    """Return how many bytes are free where `home` is, or will be."""
    return shutil.disk_usage(existing(home)).free


def space_taken(home: Path) -> dict[str, int]:
    """Return bytes on disk by part of `home`, the largest first: as `du` counts, a file with several names once.

    `models` are the weights that the policies began with: links to the cache where that is on the same file system.
    """
    taken: dict[str, int] = {}
    seen = set()
    # MLflow's artifacts are links to versions, which come before them.
    files = sorted(Path(folder) / name for folder, _, names in os.walk(home) for name in names)
    for file in sorted(files, key=lambda file: not file.is_relative_to(home / "policies")):
        try:
            facts = file.lstat()
        except FileNotFoundError:  # a server of this home is at work
            continue
        if (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            place = file.relative_to(home).as_posix()
            part = next((part for part, pattern in _PARTS if pattern.match(place)), "other")
            taken[part] = taken.get(part, 0) + facts.st_blocks * 512
    return dict(sorted(taken.items(), key=lambda pair: -pair[1]))


def taken_line(home: Path) -> str:
    """Return `space_taken` in a line."""
    taken = space_taken(home)
    return f"{gb(sum(taken.values()))} on disk in {home}: {_listed(taken)}"


def gb(size: float) -> str:
    """Format a number of bytes: `1.6 GB`, `85 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _listed(parts: dict[str, float] | dict[str, int]) -> str:
    return ", ".join(f"{name} {gb(size)}" for name, size in parts.items() if size >= 5e5) or "nothing"


def _kept(every: int | None, trained: int, evaluated: bool) -> int:
    """Return how many of `trained` versions stay: every k-th, the newest with its parent, and the best."""
    numbers = {n for n in range(1, trained + 1) if every and n % every == 0}
    return min(trained, len(numbers | {trained, trained - 1}) + evaluated)


def trained_parameters(policy: PolicySettings, folder: Path | None) -> int | None:
    """Return how many parameters are trained: all, or those of the adapter.

    None where neither the weights nor the model's name say so.
    """
    if folder is None:
        return None if policy.lora is not None else _size_in(policy.model)
    if policy.lora is None:
        return parameters(folder)
    targets, trained = policy.lora.target_modules, 0
    for name, shape in tensor_shapes(folder).items():
        module = name.removesuffix(".weight").rsplit(".", 1)[-1]
        adapted = module not in ("lm_head", "embed_tokens") if targets == "all-linear" else module in targets
        if len(shape) == 2 and name.endswith(".weight") and adapted:
            trained += policy.lora.rank * sum(shape)
    return trained


def _size_in(name: str) -> int | None:
    """Return the number of parameters that a model's name has: `SmolLM2-135M-Instruct`, `Qwen2.5-0.5B`."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", name.rsplit("/", 1)[-1], re.IGNORECASE)
    return found and int(float(found[1]) * {"M": 1e6, "B": 1e9}[found[2].upper()])


def _rollouts(settings: Settings, held_out: int) -> int:
    rollout, evaluation = settings.rollout, settings.evaluation
    trained = settings.epochs * rollout.tasks_per_epoch * rollout.group_size
    if not settings.evaluates:
        return trained
    evaluations = 1 + math.ceil(settings.epochs / evaluation.every)
    return trained + evaluations * (evaluation.limit or held_out) * evaluation.rollouts_per_task


def model_folder(model: str, models: Path | None) -> Path | None:
    """Return the folder of the weights that the policies begin with; None where they have to be fetched."""
    files = config_files(model, models)
    return next((file.parent for file in files if file.is_file()), None)


def _device(folder: Path) -> int:
    return existing(folder).stat().st_dev


def existing(folder: Path) -> Path:
    """Return the folder itself, or the nearest above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
