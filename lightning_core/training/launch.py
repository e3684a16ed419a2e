"""Start a training process, follow its progress, hand back its result. Light: imports no torch.

A training is a process of its own: started afresh or, within `forking`, forked from one that has the imports (cpu_demo).
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
from pathlib import Path
from typing import Any

from lightning_core.files import write_atomic
from lightning_core.process.forks import Fork, ForkServer
from lightning_core.process.spawn import SHORT_SPINS, Process, child_environment
from lightning_core.training.checkpoint import forget_other_boots
from lightning_core.training.errors import LESS_MEMORY, TrainingFailed
from lightning_core.training.job import Job

_POLL_S = 0.1
_running: set[Process | Fork] = set()
_GRACE_S = 5.0
_LOG_LINES = 20
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of CUDA, CUDA under WSL, ROCm
_forking = threading.Lock()
_runs = 0  # under way within `forking`
_preloaded: dict[frozenset[tuple[str, str]], ForkServer] = {}  # environment → what trainings are forked from


def train(job: Job, on_progress: Callable[[dict[str, Any]], None], log_path: Path) -> dict[str, Any]:
    """Run `job` in a process of its own and return what its `output/training.json` holds.

    `on_progress` gets each line of the job's progress file as it appears: `{"phase": …}`, then one dict an optimizer
    step. The process's output is appended to `log_path`. Interrupted (any exception, KeyboardInterrupt too), it ends
    the process and all its children first. Raises TrainingFailed with the process's own message, or the last lines
    of its log.
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
    process = _start(job, job_file, log_path)
    _running.add(process)
    error: str | None = None
    try:
        while True:
            ended = process.poll() is not None
            for line in lines.read():
                error = error or line.get("error")  # of several ranks the first: the others lost their peer
                on_progress(line)
            if ended:
                break
            time.sleep(_POLL_S)
    finally:
        _running.discard(process)
        code = process.end(_GRACE_S)
    if code == 0:
        return json.loads((job.output / "training.json").read_text())
    raise TrainingFailed(_why(job, code, error, log_path))


def end_all() -> None:
    """End every training process that this one started: where several are trained side by side, an interrupt reaches one thread alone."""
    for process in list(_running):
        process.end(_GRACE_S)


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Round the epochs of a run: its trainings need not all import what takes seconds; what they are forked from ends with this.

    Several processes a training have their launcher, and on a machine with a GPU each starts afresh: a fork cannot use what
    its parent may have begun there.
    """
    global _runs
    if sys.platform != "linux" or _has_gpu():
        yield
        return
    with _forking:
        _runs += 1
    try:
        yield
    finally:
        with _forking:
            _runs -= 1
            while not _runs and _preloaded:
                _preloaded.popitem()[1].end()


def _start(job: Job, job_file: Path, log_path: Path) -> Process | Fork:
    environment, training = _environment(job), job.policy_settings.training
    if training.processes == 1 and training.accelerate_config is None:
        shared = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
        kind = frozenset(shared.items())
        with _forking:
            if _runs:
                server = _preloaded.get(kind)
                if server is None or not server.alive:
                    if server is not None:
                        server.end()
                    _preloaded[kind] = server = ForkServer(
                        "lightning_core.cpu_demo.forked_trainings", {}, log_path, shared
                    )
                return fork(server, _arguments(job_file), log_path)
    return Process(command(job, job_file), log_path, environment)


def fork(server: ForkServer, arguments: list[str], log_path: Path) -> Fork:
    """Begin a training, `python -m lightning_core.training` with these arguments; not before the imports are done."""
    with Path(os.devnull).open("rb") as nothing, log_path.open("ab") as log:
        streams = (nothing.fileno(), log.fileno(), log.fileno())
        return server.fork({"arguments": arguments}, {}, streams)


def _has_gpu() -> bool:
    return any(map(os.path.exists, _GPUS))


def _arguments(job_file: Path) -> list[str]:
    return [str(job_file), "--with-parent", str(os.getpid())]


def command(job: Job, job_file: Path) -> list[str]:
    """The command line of a job: plain Python for one process, `accelerate launch` where the job names its settings,
    else torch's launcher (accelerate's would start a single process on CPUs)."""
    module = ["-m", "lightning_core.training", *_arguments(job_file)]
    if job.policy_settings.training.accelerate_config is not None:
        launcher = [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(job.policy_settings.training.accelerate_config),
        ]
        processes = job.policy_settings.training.processes
        of_them = ["--num_processes", str(processes)] if processes > 1 else []  # else as many as the file says
        return [sys.executable, *launcher, *of_them, *module]
    if job.policy_settings.training.processes > 1:
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(job.policy_settings.training.processes)]
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
