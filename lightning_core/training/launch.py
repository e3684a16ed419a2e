"""Start a training process, follow its progress, hand back its result. Light: imports no torch.

A training is a process of its own, which ends with it or, within `staying`, is given the next one too (resident.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_core.files import write_atomic
from lightning_core.process.spawn import SHORT_SPINS, Process, child_environment
from lightning_core.training.checkpoint import forget_other_boots
from lightning_core.training.errors import LESS_MEMORY, TrainingFailed
from lightning_core.training.job import Job

_POLL_S = 0.1
_running: set[Process] = set()
_GRACE_S = 5.0
_LOG_LINES = 20
_MODULE = ("-m", "lightning_core.training")
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of CUDA, CUDA under WSL, ROCm
_lock = threading.Lock()
_runs = 0  # under way within `staying`
_waiting: list[_Resident] = []  # trainers without a job


class _Resident(Process):
    """A trainer that does one job after another, all in the environment of the first."""

    def __init__(self, job: Job, environment: dict[str, str], log_path: Path) -> None:
        self.device, self.beside, self.jobs = job.device, job.beside, 0
        theirs, self._pipe = os.pipe()
        try:
            arguments = ["--of", str(job.state), "--with-parent", str(os.getpid())]
            command = [sys.executable, *_MODULE, "--jobs", str(theirs), *arguments]
            super().__init__(command, log_path, environment, descriptors=[theirs])
        finally:
            os.close(theirs)

    def give(self, job_file: Path, log_path: Path) -> None:
        self.jobs += 1
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.touch()
        with contextlib.suppress(BrokenPipeError):  # it was killed, which its exit code tells
            os.write(self._pipe, json.dumps({"job": str(job_file), "log": str(log_path)}).encode() + b"\n")

    def end(self, grace_s: float) -> int:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        return super().end(grace_s)


@dataclass(frozen=True)
class Trained:
    """A job that is done: what its `output/training.json` holds.

    `kept()` returns when the optimizer's state is written too, which a process that stays does meanwhile, and raises
    TrainingFailed where it is not.
    """

    result: dict[str, Any]
    kept: Callable[[], None] = lambda: None


def train(job: Job, on_progress: Callable[[dict[str, Any]], None], log_path: Path, stays: bool = True) -> Trained:
    """Run `job` in a process of its own.

    `on_progress` gets each line of the job's progress file as it appears: `{"phase": …}`, then one dict an optimizer
    step. The process's output is appended to `log_path`. Within `staying` the process stays for the next job, unless
    `stays` is false. Interrupted (any exception, KeyboardInterrupt too), it ends the process and all its children
    first. Raises TrainingFailed with the process's own message, or the last lines of its log.
    """
    configuration = job.policy_settings.training.accelerate_config
    if configuration is not None and not configuration.is_file():
        raise TrainingFailed(
            f"{configuration}: no such file; write it with `accelerate config`, or leave `training.accelerate_config` out"
        )
    forget_other_boots(job.state)
    job_file = job.progress.with_suffix(".job.json")
    write_atomic(job_file, job.model_dump_json(indent=2).encode())
    lines = _Tail(job.progress)
    process = _start(job, job_file, log_path, stays)
    _running.add(process)
    error: str | None = None
    begun = done = False
    try:
        while True:
            ended = process.poll() is not None
            read = iter(lines.read())
            for line in read:
                begun = True
                error = error or line.get("error")  # of several ranks the first: the others lost their peer
                if done := "done" in line:
                    break
                on_progress(line)
            if ended or done:
                break
            time.sleep(_POLL_S)
    finally:
        _running.discard(process)
        code = 0 if done and _stays(process) else process.end(_GRACE_S)
    if done or code == 0:
        result = json.loads((job.output / "training.json").read_text())
        if not done:
            return Trained(result)
        left = [*read]
        return Trained(result, lambda: _wait_until_kept(job, process, left, lines, log_path))
    if not begun and isinstance(process, _Resident) and process.jobs > 1:  # it was lost as it waited
        return train(job, on_progress, log_path)
    raise TrainingFailed(_why(job, code, error, log_path))


def _wait_until_kept(job: Job, process: Process, read: list[dict[str, Any]], lines: _Tail, log_path: Path) -> None:
    while True:
        code = process.poll()
        for line in [*read, *lines.read()]:
            if "kept" in line:
                return
            if "error" in line:
                raise TrainingFailed(_why(job, process.end(_GRACE_S), line["error"], log_path))
        if code is not None:
            raise TrainingFailed(_why(job, code, None, log_path))
        time.sleep(_POLL_S)


def end_all() -> None:
    """End every training process that this one started: where several are trained side by side, an interrupt reaches
    one thread alone."""
    for process in list(_running):
        process.end(_GRACE_S)


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """Keep a run's trainers from epoch to epoch, with what they imported and made; end them with the block.

    Where a training takes several processes, they start afresh each time.
    """
    global _runs
    with _lock:
        _runs += 1
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            while not _runs and _waiting:
                _waiting.pop().end(_GRACE_S)


def _start(job: Job, job_file: Path, log_path: Path, stays: bool) -> Process:
    environment, training = _environment(job), job.policy_settings.training
    stays = bool(stays and _runs and training.processes == 1 and training.accelerate_config is None)
    with _lock:
        here = [one for one in _waiting if one.device == job.device]
        _waiting[:] = [one for one in _waiting if one not in here]
    alike = (one for one in here if stays and one.beside == job.beside and one.poll() is None)
    found = next(alike, None)
    for one in here:  # of another kind: its memory is given back
        if one is not found:
            one.end(_GRACE_S)
    if not stays:
        return Process(command(job, job_file), log_path, environment)
    found = found or _Resident(job, environment, log_path)
    found.give(job_file, log_path)
    return found


def _stays(process: Process) -> bool:
    """Return whether a trainer whose job is done may wait for another, and put it with those that wait."""
    with _lock:
        if _runs and isinstance(process, _Resident):
            _waiting.append(process)
            return True
    return False


def _has_gpu() -> bool:
    return any(map(os.path.exists, _GPUS))


def command(job: Job, job_file: Path) -> list[str]:
    """Return the command line of a job: plain Python for one process, `accelerate launch` where the job names its
    settings, else torch's launcher (accelerate's would start a single process on CPUs)."""
    training = job.policy_settings.training
    module = [*_MODULE, str(job_file), "--with-parent", str(os.getpid())]
    if training.accelerate_config is not None:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(training.accelerate_config)]
        # Else as many as the file says.
        of_them = ["--num_processes", str(training.processes)] if training.processes > 1 else []
        return [sys.executable, *launcher, *of_them, *module]
    if training.processes > 1:
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(training.processes)]
        return [sys.executable, *launcher, *meeting, *module]
    return [sys.executable, *module]


def _environment(job: Job) -> dict[str, str]:
    # Where a GPU computes, what the weights took while they were loaded is better given back.
    environment = SHORT_SPINS | child_environment()
    if not _has_gpu():
        from lightning_core.cpu_demo.pages import KEEP_PAGES

        environment = KEEP_PAGES | environment
    elif "PYTORCH_ALLOC_CONF" not in environment:
        # Passes of uneven lengths leave holes in fixed segments. (torch and vLLM look for this older name of the variable.)
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    training = job.policy_settings.training
    processes = training.processes
    if job.device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = job.device
    elif processes == 1 and training.accelerate_config is None:
        # Of several GPUs in its sight, transformers would split each micro-batch over all (nn.DataParallel).
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if processes * job.beside > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // (processes * job.beside))))
    if processes > 1 and training.accelerate_config is None:  # which may name other machines
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def _why(job: Job, code: int, error: str | None, log_path: Path) -> str:
    where = f"training {job.policy} in epoch {job.epoch} of {job.run}"
    if error is not None:
        return f"{where}: {error}"
    tail = log_path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    # The second is torch's launcher of one of its ranks.
    if code == -signal.SIGKILL or re.search(r"exitcode\s*: -9\b", "\n".join(tail)):
        tail.append(f"killed by the system, most likely for memory: {LESS_MEMORY}")
    return f"{where}: ended with {code}; the end of {log_path}:\n" + "\n".join(tail)


class _Tail:
    """New whole lines of a JSONL file that another process appends to; what was there before is skipped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines() if line]
