"""In what numbers a rank computes, where the settings leave it open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_core.config import TrainingSettings
from lightning_core.process.linux import multiplies_bf16
from lightning_core.training import hardware
from lightning_core.training.hardware import (
    checkpoints_gradients,
    computes_in_bf16,
    settled,
    weights_kind,
)
from lightning_core.training.job import Job, import_trainer

SPLIT = {"ACCELERATE_USE_FSDP": "true"}
BY_FILE = {"ACCELERATE_MIXED_PRECISION": "bf16"}
BY_DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("gpu", "environment", "expected"),
    [
        ("none", {}, False),
        ("old", {}, False),
        ("new", {}, True),
        ("none", BY_FILE, True),
        ("new", {"ACCELERATE_MIXED_PRECISION": "no"}, True),
        ("new", BY_DEEPSPEED, False),
        ("new", BY_DEEPSPEED | BY_FILE, True),  # or what is scored before would be computed otherwise
        ("new", SPLIT, True),
    ],
)
def test_bf16_is_computed_in_where_a_gpu_has_it_unless_the_settings_say(
    gpu: str, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu != "none")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: gpu == "new")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert computes_in_bf16(TrainingSettings()) is expected
    assert [computes_in_bf16(TrainingSettings(bf16=said)) for said in (True, False)] == [True, False]


@pytest.mark.parametrize(
    ("gpu", "environment", "expected"),
    [(False, {}, False), (True, {}, True), (True, {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, False)],
)
def test_on_a_gpu_activations_are_computed_again_unless_the_settings_say(
    gpu: bool, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert checkpoints_gradients(TrainingSettings()) is expected
    assert [checkpoints_gradients(TrainingSettings(gradient_checkpointing=on)) for on in (True, False)] == [True, False]


@pytest.mark.parametrize(
    ("lora", "bf16", "environment", "expected"),
    [
        ({}, True, {}, "bfloat16"),
        ({}, False, {}, "float32"),
        (None, True, {}, "float32"),  # they are trained
        ({}, True, SPLIT, "float32"),
        ({}, True, BY_DEEPSPEED, "float32"),
    ],
)
def test_only_weights_that_lie_still_are_loaded_in_bf16(
    lora: Any, bf16: bool, environment: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert weights_kind(job_in(tmp_path, {"lora": lora, "training": {"bf16": bf16}})) == expected


@pytest.mark.parametrize(
    ("sampled_in", "bf16", "said", "expected"),
    [
        ("float32", False, None, "none"),
        ("float32", True, None, "token_truncate"),
        ("bfloat16", False, None, "token_truncate"),
        ("bfloat16", True, None, "token_truncate"),  # alike, and yet not to the last digit
        ("auto", False, None, "token_truncate"),  # on a GPU, where vLLM halves float32
        ("bfloat16", True, "none", "none"),
        ("float32", False, "rollout_mask", "rollout_mask"),
    ],
)
def test_tokens_are_corrected_where_sampler_and_trainer_do_not_both_compute_in_float32(
    sampled_in: str, bf16: bool, said: str | None, expected: str, tmp_path: Path
) -> None:
    job = job_in(tmp_path, {"training": {"bf16": bf16, "importance_correction": said}}, sampled_in=sampled_in)
    training = settled(job).policy_settings.training
    assert training.importance_correction == expected and training.corrected is (expected != "none")
    assert training == job.policy_settings.training.model_copy(update={"importance_correction": expected})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_fp16", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\nbugs\t\t: bf16", False),
        ("model name\t: avx512_bf16", False),
    ],
)
def test_a_cpu_that_multiplies_bf16_trains_in_it_where_vllm_sampled_in_it(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\npower management:\n")
    assert multiplies_bf16(tmp_path / "cpuinfo") is expected
    assert not multiplies_bf16(tmp_path / "none")
    monkeypatch.setattr(hardware, "multiplies_bf16", lambda: expected)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for sampled_in, said, bf16 in (
        ("bfloat16", None, expected),
        ("bfloat16", False, False),
        ("float32", None, False),
        ("float32", True, True),
    ):
        job = job_in(tmp_path, {"training": {"bf16": said}}, sampled_in=sampled_in)
        assert settled(job).policy_settings.training.bf16 is bf16


@pytest.mark.slow  # it imports TRL
def test_the_trainers_head_is_float32_where_the_servers_was(tmp_path: Path) -> None:
    import_trainer()
    from lightning_core.training.trl_bridge import grpo_arguments

    policy = {"training": {"trl": {"epsilon": 0.1}, "steps_per_epoch": 2}}
    trained = settled(job_in(tmp_path, policy, head_in_float32=True)).policy_settings
    arguments = grpo_arguments(trained, 2, 1, tmp_path, 0)
    assert arguments.cast_lm_head_to_fp32 and arguments.epsilon == 0.1


def job_in(folder: Path, policy: dict[str, Any], **fields: Any) -> Job:
    job: dict[str, Any] = dict.fromkeys(("base_model", "sequences", "output", "state", "progress"), folder)
    return Job.model_validate(job | {"run": "r", "epoch": 0, "policy": "p", "policy_settings": policy} | fields)
