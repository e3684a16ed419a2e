"""A training job over ranks on CPUs: `torchrun … tests/sharded_training.py job.json [die at step]`, with `FSDP2` in the
environment by accelerate's FSDP2.

accelerate turns FSDP on for accelerators alone; being told that its CPU ranks are such, it takes the same path with gloo.
Writes to `split` beside the job file how many tensors were split over the ranks when the model was saved, and to `scored`
how many were when it scored what it is trained on: an unprepared model would lie on the CPU, beside inputs on a device.
`gathered`: the names of those that were made whole to be saved. `kind`: that of the logprobs it was scored with.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def main(file: Path, die_at: int | None) -> None:
    from lightning_core.training.job import Job, Progress, import_trainer

    import_trainer()
    from accelerate import DistributedType, PartialState
    from torch.distributed.tensor import DTensor

    prepare = PartialState.__init__

    def as_accelerators(self: PartialState, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU and "ACCELERATE_USE_FSDP" in os.environ:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_accelerators

    from lightning_core.training import gather, trainer
    from lightning_core.training.__main__ import leave
    from lightning_core.training.grpo import run_job

    class Dying(Progress):
        def write(self, line: dict[str, Any]) -> None:
            if die_at is not None and line.get("step") == die_at:
                os._exit(9)
            super().write(line)

    def named(function: Any) -> Any:
        def gathered(model: Any) -> Any:
            whole = function(model)
            (file.parent / "gathered").write_text("\n".join(whole or ()))
            return whole

        return gathered

    def counting(function: Any, name: str) -> Any:
        def counted(model: Any, *args: Any) -> Any:
            (file.parent / name).write_text(str(sum(isinstance(p, DTensor) for p in model.parameters())))
            made = function(model, *args)
            if name == "scored":
                (file.parent / "kind").write_text(str(next(logps.dtype for logps, _ in made if logps.numel())))
            return made

        return counted

    gather.state_dict = counting(named(gather.state_dict), "split")
    trainer.score_queue = counting(trainer.score_queue, "scored")
    job = Job.model_validate_json(file.read_text())
    run_job(job, Dying(job.progress))
    leave(0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
