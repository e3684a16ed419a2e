"""Training jobs over two ranks on CPUs, forked from one process that has imported the trainer; with `FSDP2` in the environment
by accelerate's FSDP2.

accelerate turns FSDP on for accelerators alone; being told that its CPU ranks are such, it takes the same path with gloo.
Writes to `split` beside the job file how many tensors were split over the ranks when the model was saved, and to `scored`
how many were when it scored what it is trained on: an unprepared model would lie on the CPU, beside inputs on a device.
`gathered`: the names of those that were made whole to be saved. `kind`: that of the logprobs it was scored with.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_core.training.job import Job, Progress, import_trainer
from tests.ports import free_port

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


class Ranks:
    """The process that forks them: an import of the trainer takes a rank longer than its training."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def train(self, job: Job, environment: dict[str, str], die_at: int | None = None) -> tuple[list[int], str]:
        """What the two ranks exit with, and what they say. Each ends when it says that it has taken the step `die_at`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        file = job.progress.with_name("job.json")
        file.write_text(job.model_dump_json())
        print(json.dumps([str(file), environment, die_at]), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline()), file.with_suffix(".log").read_text()


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sharded_training"],
        cwd=Path(__file__).parents[1],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Ranks(process)


def main() -> None:
    """Train what each line of the standard input says."""
    prepare()
    for line in sys.stdin:
        file, environment, die_at = json.loads(line)
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        running = {fork(Path(file), environment | {"RANK": n, "LOCAL_RANK": n}, die_at) for n in ("0", "1")}
        codes = []
        while running:
            pid, status = os.wait()
            running.remove(pid)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1]:
                for other in running:  # it would wait for this one for ever
                    os.kill(other, signal.SIGKILL)
        print(json.dumps(codes), flush=True)


def fork(file: Path, environment: dict[str, str], die_at: int | None) -> int:
    if pid := os.fork():
        return pid
    try:
        with file.with_suffix(".log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ.update(environment)
        train(file, die_at)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(1)


def prepare() -> None:
    """Import the trainer, and have it write what the tests look at."""
    import_trainer()
    from accelerate import DistributedType, PartialState
    from torch.distributed.tensor import DTensor

    init = PartialState.__init__

    def as_accelerators(self: PartialState, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU and "ACCELERATE_USE_FSDP" in os.environ:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_accelerators

    from lightning_core.training import gather, trainer

    def named(function: Any) -> Any:
        def gathered(model: Any) -> Any:
            whole = function(model)
            Path("gathered").write_text("\n".join(whole or ()))
            return whole

        return gathered

    def counting(function: Any, name: str) -> Any:
        def counted(model: Any, *args: Any) -> Any:
            Path(name).write_text(str(sum(isinstance(p, DTensor) for p in model.parameters())))
            made = function(model, *args)
            if name == "scored":
                Path("kind").write_text(str(next(logps.dtype for logps, _ in made if logps.numel())))
            return made

        return counted

    gather.state_dict = counting(named(gather.state_dict), "split")
    trainer.score_queue = counting(trainer.score_queue, "scored")


def train(file: Path, die_at: int | None) -> None:
    from lightning_core.training.__main__ import leave
    from lightning_core.training.train_job import run_job

    class Dying(Progress):
        def write(self, line: dict[str, Any]) -> None:
            if die_at is not None and line.get("step") == die_at:
                os._exit(9)
            super().write(line)

    os.chdir(file.parent)
    job = Job.model_validate_json(file.read_text())
    run_job(job, Dying(job.progress))
    leave(0)


if __name__ == "__main__":
    main()
