"""Optimizer state from epoch to epoch.

`epoch-0007/` holds the state (and what an algorithm trains beside the policy) that epoch 7 left with the weights it made. What goes on from those weights goes on from it,
never from a newer one, so an epoch that is tried again starts where it started the first time. The two newest are kept.
Seeds derive from (seed, epoch) and the learning rate from the epoch and the number of steps, which is noted beside it.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

from lightning_core.files import write_atomic
from lightning_core.training.errors import WeightsError
from lightning_core.training.weights import whole_folder

# What reading half a file raises.
BROKEN = (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError)


_PART = "part.safetensors"  # of the algorithm's part


def load_state(
    folder: Path, epoch: int, version: str | None = None, optimizer: str = "adamw"
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the state of the optimizer after `epoch`, with what was noted beside it (`epoch`, `step`, `parameters`,
    `entropy`, `version`).

    Returns None where it is not kept any more, was left with another `version` (the epoch was tried again), or is
    another `optimizer`'s. Raises WeightsError where it cannot be read.
    """
    import torch

    here = _of(folder, epoch)
    if not here.exists():
        return None
    try:
        noted = json.loads((here / "state.json").read_text())
        if version is not None and noted.get("version") != version:
            return None
        if noted.get("optimizer", "adamw") != optimizer:
            return None
        return torch.load(here / "optimizer.pt", map_location="cpu", weights_only=True), noted
    except BROKEN as error:
        raise WeightsError(
            f"{here}: cannot read the optimizer state: {error}; remove the folder to start afresh"
        ) from error


def noted_version(folder: Path, epoch: int) -> str | None:
    """Return the version under which the weights left with the state after `epoch` were published; None where none is
    noted."""
    try:
        noted: dict[str, Any] = json.loads((_of(folder, epoch) / "state.json").read_text())
    except BROKEN:
        return None
    return noted.get("version")


def load_part(folder: Path, epoch: int) -> dict[str, Any] | None:
    """Return the tensors of the algorithm's part after `epoch`; None where it had none. Raises WeightsError where they
    cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = _of(folder, epoch) / _PART
    try:
        return load_file(file) if file.exists() else None
    except (*BROKEN, SafetensorError) as error:
        raise WeightsError(f"{file}: cannot be read: {error}; remove its folder to start afresh") from error


def save_state(
    folder: Path, epoch: int, optimizer: dict[str, Any], noted: dict[str, Any], part: dict[str, Any] | None = None
) -> None:
    """Write the state after `epoch`, whole or not at all, and remove those no retry can need."""
    with whole_folder(_of(folder, epoch)) as beside:
        save_tensors(optimizer, beside / "optimizer.pt")
        if part is not None:
            from safetensors.torch import save_file

            save_file(part, beside / _PART)
        (beside / "state.json").write_text(json.dumps(noted | {"epoch": epoch}))
    keep = sorted(e for e in _epochs(folder) if e <= epoch)[-2:]
    for old in _epochs(folder):
        if old < min(keep):
            shutil.rmtree(_of(folder, old))


def name_state(folder: Path, epoch: int, version: str) -> None:
    """Note the version under which the weights left with the state after `epoch` were published."""
    file = _of(folder, epoch) / "state.json"
    write_atomic(file, json.dumps(json.loads(file.read_text()) | {"version": version}).encode())


def save_tensors(tensors: dict[str, Any], file: Path) -> None:
    """Call torch.save without the checksum, which nothing reads and which takes nearly as long as the rest."""
    import torch

    torch.serialization.set_crc32_options(False)
    torch.save(tensors, file)


def parameters_of(model: Any, folder: Path, noted: dict[str, Any]) -> list[list[Any]]:
    """Return the names and shapes of what is trained, in the optimizer's order. Raises WeightsError where the state
    that was loaded from `folder`, of which this was `noted`, belongs to others."""
    parameters = [
        [name, list(getattr(p, "ds_shape", p.shape))] for name, p in model.named_parameters() if p.requires_grad
    ]
    if "epoch" in noted and noted.get("parameters") != parameters:
        raise WeightsError(
            f"{folder}: the optimizer state of epoch {noted['epoch']} belongs to other parameters; "
            "remove the folder to start AdamW afresh, or start a new run"
        )
    return parameters


def _epochs(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("epoch-")) for path in folder.glob("epoch-*")]


def _of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}"
