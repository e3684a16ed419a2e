"""Checkpoints within an epoch: a job that was killed goes on after an optimizer step, to the same weights.

`unfinished/step-0003/` in the job's state folder holds what is trained, the optimizer's moments and the metrics after
three steps; it is written whole, then the one before goes. There is no random state to keep: dropout is seeded by the
step. A checkpoint of another job (sequences, settings, weights, code) is removed, since nothing can go on from it. None is
forced to the disk, which would take longer than many a step: one from before the machine was started is not trusted, which
is for whoever starts the job to see to, as ranks on several machines must go on from the same one (`forget_other_boots`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_core.training.code import algorithm_code, training_code
from lightning_core.training.job import Job
from lightning_core.training.state import BROKEN, save_tensors
from lightning_core.training.weights import whole_folder

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"
ROWS = "rows"  # of token_rows.py, for the steps so far
# Where and how a job runs, not what it computes.
_ASIDE: dict[str, Any] = dict.fromkeys(("output", "progress", "sequences", "calls", "state", "device", "beside"), True)
_ASIDE |= {"policy_settings": {"training": {"checkpoint_seconds": True}}}


@dataclass(frozen=True)
class Found:
    """A checkpoint: optimizer steps `done`, the metrics of each, and the folder."""

    done: int
    taken: list[dict[str, Any]]
    entropy: list[float]
    folder: Path

    def tensors(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what was trained, and the optimizer's state."""
        import torch
        from safetensors.torch import load_file

        state = torch.load(self.folder / "optimizer.pt", map_location="cpu", weights_only=True)
        return load_file(self.folder / "weights.safetensors"), state


class Checkpoints:
    def __init__(self, job: Job, parts: int) -> None:
        self.folder = job.state / UNFINISHED
        constant = job.policy_settings.training.lr_schedule == "constant"
        settings = job.model_dump_json(exclude=_ASIDE | ({"epochs": True} if constant else {}))
        identity = "".join([settings, training_code(), *algorithm_code(job.policy_settings)])
        self.belongs_to = hashlib.sha256(identity.encode() + job.sequences.read_bytes()).hexdigest()
        self.parts = parts

    def newest(self) -> Found | None:
        """Return the last whole checkpoint of this job, for every rank the same. Those half written or of another job
        are removed."""
        for half in self.folder.glob(".step-*.partial"):  # a kill while it was written
            shutil.rmtree(half, ignore_errors=True)
        found: Found | None = None
        for folder in sorted(self.folder.glob("step-*")):
            read = self._read(folder)
            if read is None:
                logger.warning("%s: a checkpoint of another job, or half written; the epoch starts without it", folder)
                shutil.rmtree(folder, ignore_errors=True)
            else:
                found = read
        return found

    def _read(self, folder: Path) -> Found | None:
        from safetensors import SafetensorError

        try:
            noted = json.loads((folder / "checkpoint.json").read_text())
            found = Found(noted["done"], noted["taken"], noted["entropy"], folder)
            if noted["belongs_to"] != self.belongs_to or not 0 < found.done < self.parts:
                return None
            found.tensors()
        except (*BROKEN, SafetensorError) as error:
            logger.warning("%s: %s", folder, error)
            return None
        return found

    def save(self, trainer: Any, done: int, taken: list[dict[str, Any]]) -> None:
        """Write the state after `done` steps. Every rank calls this; the first one writes."""
        from safetensors.torch import save_file

        from lightning_core.training.gather import optimizer_state, trained_tensors

        weights = trained_tensors(trainer.accelerator.unwrap_model(trainer.model))
        optimizer = optimizer_state(trainer)
        if not trainer.accelerator.is_main_process:
            return
        here = self.folder / f"step-{done:04d}"
        with whole_folder(here, durable=False) as beside:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, beside / "weights.safetensors")
            save_tensors(optimizer, beside / "optimizer.pt")
            noted = {"belongs_to": self.belongs_to, "boot": boot(), "done": done}
            noted |= {"taken": taken, "entropy": trainer.entropy}
            (beside / "checkpoint.json").write_text(json.dumps(noted))
        for old in self.folder.glob("step-*"):
            if old != here:
                shutil.rmtree(old)


def forget_other_boots(state: Path) -> None:
    """Remove the checkpoints in a job's state folder that were written before this machine was started."""
    for folder in (state / UNFINISHED).glob("step-*"):
        with contextlib.suppress(OSError, ValueError, KeyError):  # half written: the job says so
            if json.loads((folder / "checkpoint.json").read_text())["boot"] == boot():
                continue
            logger.warning("%s: a checkpoint from before this machine was started; the epoch starts without it", folder)
            shutil.rmtree(folder, ignore_errors=True)


def clear(state: Path) -> None:
    """Remove a job's checkpoints and rows: it needs no checkpoint any more, and what was measured is in the lake."""
    for folder in (UNFINISHED, ROWS):
        shutil.rmtree(state / folder, ignore_errors=True)


def boot() -> str:
    """Return the kernel's name for this run of the machine; empty where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
