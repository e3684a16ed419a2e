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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_core.training import grpo, launch
from lightning_core.training.__main__ import main
from lightning_core.training.errors import TrainingFailed
from lightning_core.training.job import Job
from lightning_core.training.launch import command, train
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
    """The process that trains: a fork has no name of its own."""
    (process,) = launch._running
    assert process.pid is not None
    return process.pid


@pytest.fixture(params=["afresh", "forked"])
def started(request: pytest.FixtureRequest) -> Iterator[str]:
    with launch.forking() if request.param == "forked" else contextlib.nullcontext():
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

    result = train(job, follow, tmp_path / "logs" / "training.log")
    assert pids and not any(map(alive, pids)), "its memory is returned with it"
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

    monkeypatch.setattr(grpo, "run_job", hungry)
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


@pytest.mark.parametrize("context", ["nullcontext", "forking"])
def test_the_process_ends_when_the_one_that_started_it_is_killed(make_job: Any, tmp_path: Path, context: str) -> None:
    job = make_job()
    (tmp_path / "given.json").write_text(job.model_dump_json())
    starter = (
        "import sys; from contextlib import nullcontext; from pathlib import Path\n"
        "from lightning_core.training.launch import _running, forking, train\n"
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
                later.enter_context(launch.forking())  # afresh or forked, the weights are the same
        train(job, seen.append, tmp_path / "log")
        train(calm, lambda line: None, tmp_path / "log")
    assert {"resumed_at": 2, "steps": 3} in seen
    assert [line["step"] for line in seen if "step" in line] == [3]
    assert weights(job.output) == weights(calm.output)
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.slow
def test_trainings_are_forked_from_one_process_which_is_started_again_where_it_was_lost(
    make_job: Any, tmp_path: Path
) -> None:
    parents: list[int] = []
    log = tmp_path / "log"
    with launch.forking():
        for epoch in range(3):
            train(make_job(epoch=epoch, output=tmp_path / f"v{epoch}"), lambda line: None, log)
            (preloaded,) = launch._preloaded.values()
            parents.append(preloaded._process.pid)
            assert preloaded.alive
            if epoch == 1:
                preloaded._process.kill()
                preloaded._process.wait()
    assert parents[0] == parents[1] != parents[2] and not alive(parents[2])
    assert log.read_text().count("INFO lightning_core.training: trained") == 3


def test_what_forks_trainings_and_cannot_start_is_told_with_its_traceback(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peft.py").write_text("raise ImportError('not that one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with launch.forking(), pytest.raises(TrainingFailed, match=r"ended with 1; (.|\n)*not that one"):
        train(make_job(), lambda line: None, tmp_path / "log")


def test_whoever_ends_a_fork_or_what_waits_for_it_ends_its_training(make_job: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with launch.forking():
        seen: list[int] = []

        def kill(line: dict[str, Any]) -> None:
            if not seen:
                seen.append(trainer())
                assert "progress.job.json" in Path(f"/proc/{seen[0]}/cmdline").read_text(), "`ps` tells it by its job"
                (server,) = launch._preloaded.values()
                # Its exit code is its own where its last words find no place, too.
                assert launch.fork(server, [str(tmp_path / "none.json")], Path("/dev/full")).wait() == 3
                # Nobody listens to this one any more: it is not left to itself.
                other = launch.fork(server, [str(tmp_path / "progress.job.json")], log)
                while other.pid is None:
                    other.poll()
                seen.append(other.pid)
                os.kill(server.pid, signal.SIGKILL)

        with pytest.raises(TrainingFailed, match="ended with -9"):
            train(make_job(), kill, log)
        while any(map(alive, seen)):
            time.sleep(0.01)


def test_a_training_that_is_ended_while_its_imports_are_under_way_never_begins(make_job: Any, tmp_path: Path) -> None:
    job = make_job()
    with launch.forking(), ThreadPoolExecutor(1) as threads:
        future = threads.submit(train, job, lambda line: None, tmp_path / "log")
        while not launch._running:
            assert not future.done()
        launch.end_all()
        with pytest.raises(TrainingFailed, match="ended with -15"):
            future.result(5)
        # What was asked for before comes first: by its end the other would have begun.
        again = threads.submit(train, make_job(), lambda line: None, tmp_path / "log")
        while not (job.progress.exists() and job.progress.read_text()):  # the file is there before its first line
            assert not again.done()
            time.sleep(0.01)
        launch.end_all()
    assert job.progress.read_text().count('"checking"') == 1


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
