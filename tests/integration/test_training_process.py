"""The training process as a flow sees it: started, followed, failing, interrupted, killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_core.training import __main__ as program
from lightning_core.training import launch
from lightning_core.training.__main__ import main
from lightning_core.training.errors import TrainingFailed
from lightning_core.training.job import Job
from lightning_core.training.launch import command, train
from lightning_core.training.state import name_state
from tests.tiny_model import make_tiny_llama
from tests.training_data import random_group, write_parquet


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_job(tmp_path: Path, base: Path) -> Any:
    rng = np.random.default_rng(7)
    rows = [s for name in "abc" for s in random_group(name, 9, rng, a_rollout=2)]
    sequences = write_parquet(rows, tmp_path / "sequences.parquet")

    def make(**fields: Any) -> Job:
        values: dict[str, Any] = {
            "run": "r",
            "epoch": 0,
            "policy": "policy",
            "policy_settings": {"training": {"steps_per_epoch": 3, "checkpoint_seconds": 0}},
            "base_model": base,
            "sequences": sequences,
            "output": tmp_path / "v0000",
            "state": tmp_path / "state",
            "progress": tmp_path / "progress.jsonl",
        }
        return Job.model_validate(values | fields)

    return make


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie answers signals too.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def trainer() -> int:
    """The process that trains."""
    (process,) = launch._running
    return process.pid


@pytest.fixture(params=["afresh", "staying"])
def started(request: pytest.FixtureRequest) -> Iterator[str]:
    with launch.staying() if request.param == "staying" else contextlib.nullcontext():
        yield request.param


@pytest.mark.slow
def test_progress_arrives_line_by_line_and_the_result_is_what_lies_beside_the_weights(
    make_job: Any, tmp_path: Path, started: str
) -> None:
    job = make_job()
    seen: list[dict[str, Any]] = []
    pids: set[int] = set()

    def follow(line: dict[str, Any]) -> None:
        seen.append(line)
        if not pids:
            pids.add(trainer())

    result = train(job, follow, tmp_path / "logs" / "training.log").result
    assert pids
    assert all(map(alive, pids)) if started == "staying" else not any(map(alive, pids)), (
        "its memory is returned with it"
    )
    assert seen[0] == {"phase": "checking"}
    assert [line["step"] for line in seen if "step" in line] == [1, 2, 3]
    assert result["steps"] == 3 and (job.output / "model.safetensors").exists()
    assert "trained" in (tmp_path / "logs" / "training.log").read_text()
    # A second epoch appends to the same file and reports only its own lines.
    seen.clear()
    train(
        make_job(epoch=1, weights=job.output, output=tmp_path / "v0001"),
        seen.append,
        tmp_path / "logs" / "training.log",
    )
    assert [line["step"] for line in seen if "step" in line] == [1, 2, 3]


def test_bad_data_fails_with_the_process_own_words(make_job: Any, tmp_path: Path) -> None:
    rows = random_group("a", 2, np.random.default_rng(0))
    nan = [[float("nan")] * len(row) for row in rows]
    job = make_job(sequences=write_parquet(rows, tmp_path / "bad.parquet", advantages=nan))
    seen: list[dict[str, Any]] = []
    with pytest.raises(
        TrainingFailed, match=r"training policy in epoch 0 of r: .*'a.0' of rollout 'a.0': `advantages` is nan"
    ):
        train(job, seen.append, tmp_path / "log")
    assert "error" in seen[-1] and {"phase": "importing"} not in seen


def test_bad_data_and_a_bad_job_exit_with_3(make_job: Any, tmp_path: Path) -> None:
    job = make_job(sequences=tmp_path / "none.parquet")
    for name, content in (("data.json", job.model_dump_json()), ("job.json", '{"run": "r"}')):
        (tmp_path / name).write_text(content)
        done = subprocess.run(
            [sys.executable, "-m", "lightning_core.training", str(tmp_path / name)], capture_output=True, text=True
        )
        assert done.returncode == 3, done.stderr
    assert "`policy_settings` is missing" in done.stderr


@pytest.mark.parametrize(("of", "said"), [("torch", "can't allocate memory"), ("python", "MemoryError")])
def test_memory_that_is_not_there_is_told_with_what_takes_less(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str, said: str
) -> None:
    import torch

    def hungry(job: Job, progress: Any) -> dict[str, Any]:
        if of == "python":
            raise MemoryError
        torch.empty(1 << 60)
        raise AssertionError

    monkeypatch.setattr(program, "run_job", hungry)
    job = make_job()
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    assert main([str(file)]) == 3
    (line,) = map(json.loads, job.progress.read_text().splitlines())
    assert re.search(said + ".*: lower `training.tokens_per_micro_batch`, set", line["error"])


def test_an_interrupt_ends_the_process_and_leaves_no_version(make_job: Any, tmp_path: Path, started: str) -> None:
    job = make_job()
    pids: list[int] = []

    def interrupt(line: dict[str, Any]) -> None:
        pids.append(trainer())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, interrupt, tmp_path / "log")
    assert not alive(pids[0])
    assert not job.output.exists()


def test_a_process_that_was_killed_is_told_with_the_likely_reason(make_job: Any, tmp_path: Path, started: str) -> None:
    job = make_job()
    with pytest.raises(TrainingFailed, match=r"ended with -9(.|\n)*tokens_per_micro_batch"):
        train(job, lambda line: os.kill(trainer(), signal.SIGKILL), tmp_path / "log")
    assert not job.output.exists()


@pytest.mark.parametrize("context", ["nullcontext", "staying"])
def test_the_process_ends_when_the_one_that_started_it_is_killed(make_job: Any, tmp_path: Path, context: str) -> None:
    job = make_job()
    (tmp_path / "given.json").write_text(job.model_dump_json())
    starter = (
        "import sys; from contextlib import nullcontext; from pathlib import Path\n"
        "from lightning_core.training.launch import _running, staying, train\n"
        "from lightning_core.training.job import Job\n"
        "tell = lambda line: print(*(p.pid for p in _running), flush=True)\n"
        f"with {context}():\n"
        "    train(Job.model_validate_json(Path(sys.argv[1]).read_text()), tell, Path(sys.argv[2]))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, str(tmp_path / "given.json"), str(tmp_path / "log")], stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        theirs = [child, *(int(p) for p in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())]
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 60
    while any(map(alive, theirs)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("sft", marks=pytest.mark.extra)])
def test_a_job_killed_at_any_time_and_started_again_gives_the_weights_of_one_that_was_not(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    policy = {"algorithm": algorithm, "training": {"steps_per_epoch": 3, "checkpoint_seconds": 0}}
    monkeypatch.setattr(launch, "_POLL_S", 0.002)  # so small a model is saved within the usual tenth of a second

    def weights(folder: Path) -> str:
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    aside = {"output": tmp_path / "calm", "state": tmp_path / "calm-state", "progress": tmp_path / "calm.jsonl"}
    calm = make_job(policy_settings=policy, **aside)
    job = make_job(policy_settings=policy)
    seen: list[dict[str, Any]] = []
    with contextlib.ExitStack() as later:
        for moment in ({"step": 1}, {"phase": "saving"}):

            def kill(line: dict[str, Any], moment: dict[str, Any] = moment) -> None:
                if moment.items() <= line.items():
                    os.kill(trainer(), signal.SIGKILL)

            with pytest.raises((TrainingFailed, AssertionError)):
                train(job, kill, tmp_path / "log")
                raise AssertionError("ended before it could be killed")
            assert not job.output.exists() or (job.output / "training.json").exists()
            if moment == {"step": 1}:
                later.enter_context(launch.staying())  # the weights are the same
        train(job, seen.append, tmp_path / "log")
        train(calm, lambda line: None, tmp_path / "log")
    assert {"resumed_at": 2, "steps": 3} in seen
    assert [line["step"] for line in seen if "step" in line] == [3]
    assert weights(job.output) == weights(calm.output)
    assert not list(tmp_path.glob(".*.partial"))


LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["full", pytest.param("lora", marks=pytest.mark.extra), pytest.param("sft", marks=pytest.mark.extra)]
)
def test_a_trainer_that_stays_goes_on_from_its_memory_to_the_bits_that_files_would_give(
    make_job: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: dict[str, Any] = {"training": {"steps_per_epoch": 2, "learning_rate": 1e-3}}
    policy |= {"lora": LORA} if kind == "lora" else {"algorithm": "sft"} if kind == "sft" else {}

    def epochs(here: Path, lost_after: int | None = None) -> list[str]:
        digests, pids, read = [], [], []
        for epoch in range(3):
            monkeypatch.setenv("NOT_THE_TRAINERS", str(epoch))  # as MLflow changes the flow's environment
            before = {} if epoch == 0 else {"weights": here / f"v{epoch}", "made_in": epoch - 1, "version": f"v{epoch}"}
            job = make_job(
                epoch=epoch, policy_settings=policy, output=here / f"v{epoch + 1}", state=here / "state",
                progress=here / "progress.jsonl", **before,
            )  # fmt: skip
            trained = train(job, lambda line: pids.append(trainer()), here / f"log-{epoch}")
            read.append(trained.result["seconds"]["loading"])
            trained.kept()
            name_state(job.state, epoch, f"v{epoch + 1}")
            file = "adapter_model" if kind == "lora" else "model"
            digests.append(hashlib.sha256((job.output / f"{file}.safetensors").read_bytes()).hexdigest())
            assert "trained" in (here / f"log-{epoch}").read_text()
            if epoch == lost_after:
                os.kill(pids[-1], signal.SIGKILL)
        digests.append(str(len(set(pids))))
        return digests

    afresh = epochs(tmp_path / "afresh")
    with launch.staying():
        stayed = epochs(tmp_path / "stayed")
        (waiting,) = launch._waiting
        lost = epochs(tmp_path / "lost", lost_after=1)
    assert not alive(waiting.pid)
    assert (afresh[-1], stayed[-1], lost[-1]) == ("3", "1", "2")
    assert stayed[:-1] == afresh[:-1] == lost[:-1]
    assert len(set(afresh[:-1])) == 3


def test_a_trainer_that_stays_reads_what_another_process_made_meanwhile(make_job: Any, tmp_path: Path) -> None:
    with launch.staying():
        first = make_job(output=tmp_path / "v1")
        train(first, lambda line: None, tmp_path / "log").kept()
        name_state(first.state, 0, "v0001")
        # The epoch was tried again elsewhere: its version is another than the one in memory.
        job = make_job(epoch=1, weights=tmp_path / "v1", made_in=0, version="v0002", output=tmp_path / "v2")
        seen: list[dict[str, Any]] = []
        train(job, seen.append, tmp_path / "log")
    assert any("not kept any more" in line.get("warning", "") for line in seen)


def test_a_version_is_made_before_the_state_that_goes_with_it_and_a_state_that_is_not_kept_is_told(
    make_job: Any, tmp_path: Path
) -> None:
    job = make_job()
    with launch.staying():
        trained = train(job, lambda line: None, tmp_path / "log")
        assert (job.output / "model.safetensors").exists()
        trained.kept()
        assert (job.state / "epoch-0000" / "state.json").exists()
        in_the_way = make_job(epoch=1, output=tmp_path / "v2", state=tmp_path / "state-2")
        (tmp_path / "state-2").mkdir()
        (tmp_path / "state-2" / "epoch-0001").write_text("a file, where a folder has to be")
        trained = train(in_the_way, lambda line: None, tmp_path / "log")
        with pytest.raises(TrainingFailed, match="epoch-0001"):
            trained.kept()


@pytest.mark.slow
def test_two_processes_train_to_the_same_loss_as_one(make_job: Any, tmp_path: Path) -> None:
    one: list[dict[str, Any]] = []
    two: list[dict[str, Any]] = []
    # So few tokens at a time that a step's rows go to both (see test_training_ranks).
    training = {"steps_per_epoch": 3, "tokens_per_micro_batch": 64}
    train(make_job(policy_settings={"training": training}), one.append, tmp_path / "log")
    both = make_job(
        policy_settings={"training": training | {"processes": 2}},
        output=tmp_path / "two",
        state=tmp_path / "two-state",
        progress=tmp_path / "two.jsonl",
    )
    train(both, two.append, tmp_path / "log")
    ranks = [line for line in (tmp_path / "log").read_text().splitlines() if "2 processes" in line]
    assert ranks, "the second job did not train in two processes"
    for single, shared in zip([s for s in one if "step" in s], [s for s in two if "step" in s], strict=True):
        assert shared["loss"] == pytest.approx(single["loss"], abs=1e-4)
        assert shared["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-3)
        assert shared["mismatch"] == pytest.approx(single["mismatch"], rel=1e-4)
        assert shared["entropy"] == pytest.approx(single["entropy"], rel=1e-4)


@pytest.mark.extra
def test_what_no_one_foresaw_in_one_of_several_processes_is_told_with_its_traceback(
    make_job: Any, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file, where a folder has to be")
    job = make_job(policy_settings={"training": {"steps_per_epoch": 3, "processes": 2}})
    with pytest.raises(TrainingFailed, match=r"Traceback(.|\n)*(NotADirectory|FileExists)Error"):
        train(job, lambda line: None, tmp_path / "log")


def test_several_processes_have_a_launcher_and_accelerate_where_its_settings_are_given(
    make_job: Any, tmp_path: Path
) -> None:
    file = tmp_path / "job.json"
    assert command(make_job(), file)[1:3] == ["-m", "lightning_core.training"]
    several = command(make_job(policy_settings={"training": {"processes": 2}}), file)
    assert several[1:5] == ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    training = {"processes": 2, "accelerate_config": tmp_path / "c.yaml"}
    configured = command(make_job(policy_settings={"training": training}), file)
    assert configured[1:5] == ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "c.yaml")]
    assert configured[5:7] == ["--num_processes", "2"]
    as_in_the_file = command(make_job(policy_settings={"training": {"accelerate_config": tmp_path / "c.yaml"}}), file)
    assert "--num_processes" not in as_in_the_file


def test_starting_a_job_imports_no_torch() -> None:
    code = "import sys, lightning_core.training.launch as l; sys.exit(any(m in sys.modules for m in ('torch', 'trl', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
