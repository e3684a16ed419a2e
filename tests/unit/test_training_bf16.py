"""Training that computes in bf16: what lies in which kind of number, and that small steps are not rounded away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_core.policies.probe import Probe, difference
from lightning_core.training import resident
from lightning_core.training.job import Job, Progress
from lightning_core.training.new_version import take_probe
from lightning_core.training.train_job import run_job
from lightning_core.training.weights import load_model
from tests.unit.test_training_resume import _trl, base, make_job

__all__ = ["_trl", "base", "make_job"]  # fixtures

pytestmark = pytest.mark.slow  # it trains


def test_the_base_under_an_adapter_lies_in_bf16_where_that_is_computed_in(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def noted(*arguments: Any) -> Any:
        loaded.append(load_model(*arguments))
        return loaded[-1]

    monkeypatch.setattr(resident, "load_model", noted)
    first, second = (
        make_job(
            lora=True,
            training={"bf16": bf16, "beta": 0.1, "importance_correction": "none"},
            output=tmp_path / str(bf16),
            state=tmp_path / f"s{bf16}",
        )
        for bf16 in (False, True)
    )
    in_float32, in_bf16 = (run_job(job, Progress(job.progress)) for job in (first, second))
    kinds = [
        {str(p.dtype) for p in model.parameters() if p.requires_grad is trained}
        for model in loaded
        for trained in (False, True)
    ]
    assert kinds == [{"torch.float32"}, {"torch.float32"}, {"torch.bfloat16"}, {"torch.float32"}]
    for name in ("loss", "entropy", "mismatch"):
        assert in_bf16[name] == pytest.approx(in_float32[name], rel=0.02, abs=0.01), name
    assert (in_bf16["packing"], in_bf16["probe"]["dtype"]) == ("tree", "bfloat16")
    (adapter,) = (load_file(f) for f in second.output.glob("*.safetensors"))
    assert {str(tensor.dtype) for tensor in adapter.values()} == {"torch.float32"}


def test_fifty_small_steps_in_bf16_are_found_in_the_weights(
    make_job: Callable[..., Job], base: Path, tmp_path: Path
) -> None:
    """An epoch each, from the version before it. Weights in bf16 would have stayed as they were."""
    epochs, rate = 50, 1e-6
    training = {"bf16": True, "learning_rate": rate, "steps_per_epoch": 1, "checkpoint_seconds": None}
    before = None
    for epoch in range(epochs):
        made: dict[str, Any] = {"weights": before, "made_in": epoch - 1} if before else {}
        job = make_job(
            training=training | {"tokens_per_micro_batch": 2048},
            epoch=epoch,
            epochs=epochs,
            output=tmp_path / f"v{epoch}",
            **made,
        )
        result = run_job(job, Progress(job.progress))
        before = job.output
    assert result["importance_ratio"] > 0, "bf16 and what sampled in float32 differ before any update"
    first, last = (load_file(next(folder.glob("*.safetensors"))) for folder in (base, job.output))
    assert {str(tensor.dtype) for tensor in last.values()} == {"torch.float32"}
    moved = torch.cat([(last[name] - first[name]).abs().flatten() for name in first])
    assert epochs * rate / 4 < float(moved.mean()) < epochs * rate * 1.1
    weights = torch.cat([tensor.flatten() for tensor in first.values()]).bfloat16()
    rounded = (weights.float() + rate).bfloat16() == weights
    assert float(rounded.float().mean()) > 0.9, "the test would see nothing"


@pytest.mark.parametrize("head_in_float32", [False, True])
def test_what_a_server_is_compared_with_is_what_the_saved_weights_make_of_it_in_bf16_too(
    make_job: Callable[..., Job], head_in_float32: bool
) -> None:
    job = make_job(training={"bf16": True}, sampled_in="bfloat16", head_in_float32=head_in_float32)
    probe = Probe.model_validate(run_job(job, Progress(job.progress))["probe"])
    saved = Probe.model_validate(take_probe(load_model(job.output), probe.token_ids, len(probe.logprobs), bf16=True))
    assert difference(probe.logprobs, saved.logprobs) < 1e-5
