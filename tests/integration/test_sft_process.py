"""Supervised fine-tuning in processes of its own, one and two, as a flow starts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lightning_core.training.job import Job
from lightning_core.training.launch import train
from tests.tiny_model import make_tiny_llama
from tests.training_data import random_group, write_parquet


@pytest.mark.extra
def test_two_processes_train_to_the_same_weights_as_one(tmp_path: Path) -> None:
    rows = [s for name in "abcde" for s in random_group(name, 3, np.random.default_rng(ord(name)))]
    base = make_tiny_llama(tmp_path / "model")
    sequences = write_parquet(rows, tmp_path / "sequences.parquet")
    seen: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for processes, lines in seen.items():
        settings = {"steps_per_epoch": 2, "tokens_per_micro_batch": 64, "processes": processes, "learning_rate": 1e-3}
        job = Job.model_validate(
            {
                "run": "r",
                "epoch": 0,
                "policy": "policy",
                "policy_settings": {"algorithm": "sft", "training": settings},
                "base_model": base,
                "sequences": sequences,
                "output": tmp_path / f"v{processes}",
                "state": tmp_path / f"state{processes}",
                "progress": tmp_path / f"{processes}.jsonl",
            }
        )
        train(job, lines.append, tmp_path / f"log{processes}")
    steps = {n: [line for line in lines if "step" in line] for n, lines in seen.items()}
    assert len(steps[1]) == 2
    for one, two in zip(steps[1], steps[2], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    alone, shared = (load_file(tmp_path / f"v{n}/model.safetensors") for n in (1, 2))
    for name, tensor in alone.items():
        assert np.abs(tensor - shared[name]).max() < 2e-4, name
