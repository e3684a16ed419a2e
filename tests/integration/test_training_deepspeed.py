"""Training over two processes by DeepSpeed's ZeRO, where it is installed: `.venv/bin/uv pip install deepspeed`.

It takes CPUs with DS_ACCELERATOR=cpu, and builds a small extension on its first use (a C++ compiler, ninja).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_core.training.errors import TrainingFailed
from lightning_core.training.job import Job, Progress
from lightning_core.training.launch import train
from lightning_core.training.train_job import run_job
from tests.integration.test_training_ranks import assert_same, files, job_in

__all__ = ["files"]  # a fixture

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.extra]

# As `accelerate config` writes it, with what it suggests.
ACCELERATE = """
compute_environment: LOCAL_MACHINE
deepspeed_config:
  gradient_accumulation_steps: 1
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: true
  zero3_save_16bit_model: true
  zero_stage: STAGE
distributed_type: DEEPSPEED
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 2
same_network: true
use_cpu: true
"""


class Interrupted(Exception):
    pass


@pytest.fixture(autouse=True)
def _on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(params=[2, 3], ids=["zero2", "zero3"])
def configuration(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    file = tmp_path / "accelerate.yaml"
    file.write_text(ACCELERATE.replace("STAGE", str(request.param)))
    return str(file)


def next_epoch(job: Job, **fields: Any) -> Job:
    """The job of the epoch after, from the version and the optimizer's state that `job` left."""
    after = {"epoch": 1, "made_in": 0, "weights": job.output, "output": job.output.parent / "v0002"}
    return job.model_copy(update=after | fields)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_zero_gives_what_one_process_gives_interrupted_resumed_and_in_the_epoch_after(
    tmp_path: Path, files: tuple[Path, Path], configuration: str, lora: dict[str, int] | None
) -> None:
    alone = job_in(tmp_path / "alone", files, lora=lora)
    run_job(alone, Progress(alone.progress))
    job = job_in(tmp_path / "two", files, lora=lora, processes=2, accelerate_config=configuration)

    def interrupt(line: dict[str, Any]) -> None:
        if line.get("step") == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(job, interrupt, tmp_path / "log")
    assert not job.output.exists()
    train(job, lambda line: None, tmp_path / "log")
    assert '"resumed_at": ' in job.progress.read_text()
    assert "rank 1 of 2 processes" in (tmp_path / "log").read_text()
    assert_same(job, alone)

    # The state is torch's: one process goes on from what two left, and the other way about.
    after = next_epoch(alone)
    run_job(after, Progress(after.progress))
    theirs = next_epoch(job)
    train(theirs, lambda line: None, tmp_path / "log")
    assert_same(theirs, after)
    ours = next_epoch(alone, policy_settings=job.policy_settings, output=alone.output.parent / "by-two")
    train(ours, lambda line: None, tmp_path / "log")
    assert_same(ours, after)
    assert json.loads((ours.output / "training.json").read_text())["step"] == 6


def test_examples_are_trained_on_by_zero_as_by_one_process(
    tmp_path: Path, files: tuple[Path, Path], configuration: str
) -> None:
    def examples(name: str, **training: Any) -> Job:
        settings = {"algorithm": "sft", "training": {"steps_per_epoch": 3, "tokens_per_micro_batch": 64, **training}}
        job = job_in(tmp_path / name, files)
        return Job.model_validate(job.model_dump() | {"policy_settings": settings})

    alone, two = examples("alone"), examples("two", processes=2, accelerate_config=configuration)
    run_job(alone, Progress(alone.progress))
    train(two, lambda line: None, tmp_path / "log")
    one, both = (json.loads((job.output / "training.json").read_text()) for job in (alone, two))
    for name in ("loss", "grad_norm", "entropy"):
        assert both[name] == pytest.approx(one[name], rel=1e-3), name


def test_clipping_that_is_not_the_settings_is_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(ACCELERATE.replace("STAGE", "2\n  gradient_clipping: 7.0"))
    job = job_in(tmp_path / "two", files, processes=2, accelerate_config=str(file))
    with pytest.raises(TrainingFailed, match=r"ds gradient_clipping=7\.0 vs hf max_grad_norm=1\.0"):
        train(job, lambda line: None, tmp_path / "log")
