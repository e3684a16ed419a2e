"""Supervised fine-tuning in processes of its own, one and two, as a flow starts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lightning_core.training.dataset import Sequence
from lightning_core.training.job import Job
from lightning_core.training.launch import train
from tests.tiny_model import make_tiny_llama
from tests.training_data import random_group, write_parquet


def steps_of(folder: Path, rows: list[Sequence], processes: int) -> list[dict[str, Any]]:
    """The metrics of each step of a job in so many processes; what it makes is in `folder/v<processes>`."""
    base = folder / "model"
    if not base.exists():
        make_tiny_llama(base)
    settings = {"steps_per_epoch": 2, "tokens_per_micro_batch": 64, "processes": processes, "learning_rate": 1e-3}
    job = Job.model_validate(
        {
            "run": "r",
            "epoch": 0,
            "policy": "policy",
            "policy_settings": {"algorithm": "sft", "training": settings},
            "base_model": base,
            "sequences": write_parquet(rows, folder / "sequences.parquet"),
            "output": folder / f"v{processes}",
            "state": folder / f"state{processes}",
            "progress": folder / f"{processes}.jsonl",
        }
    )
    lines: list[dict[str, Any]] = []
    train(job, lines.append, folder / f"log{processes}")
    return [line for line in lines if "step" in line]


@pytest.mark.extra
@pytest.mark.parametrize(("groups", "size", "steps"), [("abcde", 3, 2), ("a", 1, 1)], ids=["shared", "one-for-two"])
def test_two_processes_train_to_the_same_weights_as_one(tmp_path: Path, groups: str, size: int, steps: int) -> None:
    rows = [s for name in groups for s in random_group(name, size, np.random.default_rng(ord(name)))]
    alone, shared = steps_of(tmp_path, rows, 1), steps_of(tmp_path, rows, 2)
    assert len(alone) == steps
    for one, two in zip(alone, shared, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
        for name in ("grad_norm", "entropy"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    ours, theirs = (load_file(tmp_path / f"v{n}/model.safetensors") for n in (1, 2))
    for name, tensor in ours.items():
        assert np.abs(tensor - theirs[name]).max() < 2e-4, name
