"""Training over two processes: by an accelerate configuration, and with FSDP2, on gloo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file

from lightning_core.training import launch
from lightning_core.training.errors import TrainingFailed
from lightning_core.training.job import Job, Progress, check_job, derive_seed
from lightning_core.training.launch import train
from lightning_core.training.micro_batches import plan_epoch
from lightning_core.training.token_rows import token_scores
from lightning_core.training.train_job import run_job
from tests import sharded_training
from tests.tiny_model import make_tiny_llama
from tests.training_data import random_group, with_critic, write_parquet

pytestmark = pytest.mark.slow

ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 2
rdzv_backend: c10d
same_network: true
use_cpu: false
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(7)
    rows = [s for name in "abc" for s in random_group(name, 9, rng, a_rollout=2)]
    return make_tiny_llama(folder / "model"), write_parquet(rows, folder / "sequences.parquet")


def test_the_jobs_of_this_module_give_both_ranks_uneven_work_and_cut_rollouts(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other tests here stand on: an idle rank would make them all pass."""
    job = job_in(tmp_path / "job", files)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def trained(rank: int) -> list[list[str]]:
        """Of each step, the rollouts that the rank trains a part of."""
        monkeypatch.setenv("RANK", str(rank))
        return [
            [s.rollout_id for b in step.micro_batches for s, w in zip(b.sequences, b.weights, strict=True) if w]
            for step in plan_epoch(
                job.policy_settings, check_job(job)[1].rows, "tree", derive_seed(job.seed, job.epoch)
            )
        ]

    for first, second in zip(trained(0), trained(1), strict=True):
        assert first and second and len(first) != len(second)
        assert set(first) & set(second), "no rollout is trained by both"


def job_in(folder: Path, files: tuple[Path, Path], lora: dict[str, int] | None = None, **training: Any) -> Job:
    folder.mkdir(parents=True)
    settings = {"steps_per_epoch": 3, "learning_rate": 1e-3, "loss_type": "grpo", "beta": 0.1}
    settings |= {"checkpoint_seconds": 0, "tokens_per_micro_batch": 64}
    settings |= {
        "importance_correction": "rollout_truncate",
        "trl": {"entropy_coef": 0.1, "top_entropy_quantile": 0.5},
        **training,
    }
    return Job.model_validate(
        {
            "run": "r", "epoch": 0, "policy": "policy", "policy_settings": {"training": settings, "lora": lora}, "base_model": files[0],
            "sequences": files[1], "output": folder / "v0001", "state": folder / "state", "progress": folder / "p.jsonl",
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path]) -> Job:
    job = job_in(tmp_path_factory.mktemp("alone") / "job", files)
    run_job(job, Progress(job.progress))
    return job


def assert_same(job: Job, alone: Job) -> None:
    ours, theirs = (load_file(next(j.output.glob("*.safetensors"))) for j in (job, alone))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # AdamW's first steps are as large as the rate wherever a gradient is near nothing, so bits can show as 1e-3.
        assert float((tensor - theirs[name]).abs().mean()) < 2e-5, name
    # Means over all ranks, of the whole job.
    one, two = (json.loads((j.output / "training.json").read_text()) for j in (alone, job))
    for name in ("loss", "grad_norm", "kl", "entropy", "clip_ratio", "mismatch", "mismatch_kl", "importance_ratio"):
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


def test_two_processes_by_an_accelerate_configuration_give_what_one_gives(
    tmp_path: Path, files: tuple[Path, Path], alone: Job
) -> None:
    configuration = tmp_path / "accelerate.yaml"
    configuration.write_text(ACCELERATE)
    job = job_in(tmp_path / "two", files, processes=2, accelerate_config=str(configuration))
    train(job, lambda line: None, tmp_path / "log")
    assert "rank 1 of 2 processes" in (tmp_path / "log").read_text()
    assert_same(job, alone)


def test_one_of_two_processes_killed_ends_both_and_the_likely_reason_is_told(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    job = job_in(tmp_path / "two", files, processes=2)

    def kill_the_other(line: dict[str, Any]) -> None:
        (launcher,) = launch._running
        for process in psutil.Process(launcher.pid).children(recursive=True):
            if process.environ().get("RANK") == "1":
                process.kill()

    with pytest.raises(TrainingFailed, match=r"most likely for memory: lower `training.tokens_per_micro_batch`"):
        train(job, kill_the_other, tmp_path / "log")
    assert not job.output.exists()


@pytest.mark.extra  # two processes
def test_an_adapter_over_two_processes_is_what_one_trains(tmp_path: Path, files: tuple[Path, Path]) -> None:
    lora = {"rank": 4, "alpha": 8}
    one, two = (job_in(tmp_path / str(n), files, lora=lora, processes=n) for n in (1, 2))
    run_job(one, Progress(one.progress))
    train(two, lambda line: None, tmp_path / "log")
    assert_same(two, one)


@pytest.fixture(scope="module")
def ranks() -> Iterator[sharded_training.Ranks]:
    with sharded_training.ranks() as started:
        yield started


@pytest.mark.parametrize("kind", ["fsdp2", "ddp"])
def test_two_processes_killed_and_resumed_give_what_one_gives(
    tmp_path: Path, files: tuple[Path, Path], alone: Job, ranks: sharded_training.Ranks, kind: str
) -> None:
    environment = sharded_training.FSDP2 if kind == "fsdp2" else {}
    job = job_in(tmp_path / "two", files)
    codes, said = ranks.train(job, environment, die_at=3)
    assert 9 in codes and not job.output.exists(), said
    assert [p.name for p in (job.state / "unfinished").iterdir()] == ["step-0002"], said
    codes, said = ranks.train(job, environment)
    assert codes == [0, 0], said
    assert '"resumed_at": 2' in job.progress.read_text()
    for when in ("split", "scored"):
        split = int((tmp_path / "two" / when).read_text())
        assert split > 10 if kind == "fsdp2" else split == 0
    assert_same(job, alone)


def test_a_critic_over_two_processes_is_what_one_trains_and_is_refused_where_weights_are_split(
    tmp_path: Path, files: tuple[Path, Path], ranks: sharded_training.Ranks
) -> None:
    jobs = [with_critic(job_in(tmp_path / str(n), files)) for n in range(3)]
    run_job(jobs[0], Progress(jobs[0].progress))
    codes, said = ranks.train(jobs[1], {})
    assert codes == [0, 0], said
    assert_same(jobs[1], jobs[0])
    one, two = (token_scores(job.state) for job in jobs[:2])
    assert one is not None and two is not None and one.column("sequence_id") == two.column("sequence_id")
    for ours, theirs in zip(two.column("numbers").to_pylist(), one.column("numbers").to_pylist(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    critics = [load_file(job.state / "epoch-0000/part.safetensors") for job in jobs[:2]]
    for name, tensor in critics[0].items():
        assert float((tensor - critics[1][name]).abs().max()) < 1e-3, name
    codes, said = ranks.train(jobs[2], sharded_training.FSDP2)
    assert codes != [0, 0]
    assert "trains a part beside the policy, which was not tried with weights that are split" in said


def test_fsdp2_in_bf16_rounds_no_logprobs(
    tmp_path: Path, files: tuple[Path, Path], ranks: sharded_training.Ranks
) -> None:
    one, two = (job_in(tmp_path / str(n), files, bf16=True) for n in (1, 2))
    run_job(one, Progress(one.progress))
    codes, said = ranks.train(two, sharded_training.FSDP2)
    assert codes == [0, 0], said
    assert (tmp_path / "2" / "kind").read_text() == "torch.float32"
    alone, split = (json.loads((job.output / "training.json").read_text()) for job in (one, two))
    for name in ("loss", "grad_norm", "entropy", "mismatch"):
        assert split[name] == pytest.approx(alone[name], rel=0.02, abs=0.01), name


@pytest.mark.parametrize("again", ["false", pytest.param("true", marks=pytest.mark.extra)])
def test_fsdp2_gathers_of_an_adapters_model_the_adapter_alone(
    tmp_path: Path, files: tuple[Path, Path], ranks: sharded_training.Ranks, again: str
) -> None:
    """The base model, which may be too large for one process, stays in parts."""
    one, two = (job_in(tmp_path / str(n), files, lora={"rank": 4, "alpha": 8}) for n in (1, 2))
    run_job(one, Progress(one.progress))
    codes, said = ranks.train(two, sharded_training.FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": again})
    assert codes == [0, 0], said
    gathered = (tmp_path / "2" / "gathered").read_text().splitlines()
    assert gathered and all("lora_" in name and "_checkpoint" not in name for name in gathered)
    assert_same(two, one)


def test_an_accelerate_configuration_that_is_not_there_is_told_before_a_process_starts(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    job = job_in(tmp_path / "none", files, accelerate_config=str(tmp_path / "none.yaml"))
    with pytest.raises(TrainingFailed, match=r"none.yaml: no such file.*`training.accelerate_config`"):
        train(job, lambda line: None, tmp_path / "log")
