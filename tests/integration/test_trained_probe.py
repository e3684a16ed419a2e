"""What a training process notes of its weights is what the written weights compute: full ones and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_core.policies.probe import Probe, difference
from lightning_core.training.job import Job
from lightning_core.training.launch import train
from tests.tiny_model import make_tiny_llama
from tests.training_data import random_group, write_parquet

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.extra)], ids=["full", "adapter"])
def test_the_trainers_logprobs_are_those_of_the_weights_it_wrote(lora: bool, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_tiny_llama(tmp_path / "model")
    rng = np.random.default_rng(7)
    rows = [row for name in "abc" for row in random_group(name, 3, rng)]
    settings: dict[str, Any] = {"training": {"steps_per_epoch": 2, "learning_rate": 1e-3}}
    if lora:
        settings["lora"] = {"rank": 4}
    fields: dict[str, Any] = {
        "run": "r",
        "epoch": 0,
        "policy": "policy",
        "policy_settings": settings,
        "base_model": base,
        "sequences": write_parquet(rows, tmp_path / "sequences.parquet"),
        "output": tmp_path / "output",
        "state": tmp_path / "state",
        "progress": tmp_path / "progress.jsonl",
    }
    probe = Probe.model_validate(train(Job.model_validate(fields), lambda _: None, tmp_path / "log").result["probe"])

    assert any(probe.token_ids == row.token_ids[: len(probe.token_ids)].tolist() for row in rows)
    assert len(probe.token_ids) - len(probe.logprobs) == 20  # the prompt's: it asks for what was sampled

    def logprobs(model: Any) -> list[float]:
        ids = torch.tensor([probe.token_ids])
        with torch.no_grad():
            found = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[
                -len(probe.logprobs) :
            ]
        return [float(value) for value in found[:, 0]]

    before = AutoModelForCausalLM.from_pretrained(base)
    assert difference(logprobs(before), probe.logprobs) > 2e-3  # it tells the two versions apart
    after = (
        PeftModel.from_pretrained(before, str(tmp_path / "output"))
        if lora
        else AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    )
    assert difference(logprobs(after.eval()), probe.logprobs) < 1e-5
