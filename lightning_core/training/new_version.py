"""What a training leaves behind, by whatever algorithm: the optimizer's state, and the new version with what was measured.

Measured are the logprobs of a few tokens, for the server to be compared with, and how fast the training was.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np

from lightning_core.policies.probe import ASKED, CONTEXT
from lightning_core.training.dataset import Sequence
from lightning_core.training.job import Job, Progress, derive_seed, peak_rss
from lightning_core.training.resident import Made, keep, write_behind
from lightning_core.training.state import save_state
from lightning_core.training.weights import save_weights, whole_folder

PART = "algorithm_part"  # of the model: what an algorithm trains beside the policy
# Dense bf16 FLOP/s of the makers' data sheets, by a part of the device's name; the first that occurs.
_PEAK_FLOPS = {
    "H200": 989e12, "H100": 989e12, "H800": 989e12, "B200": 2250e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12,
    "L40": 181e12, "A10": 125e12, "L4": 121e12, "4090": 165e12, "3090": 71e12, "MI300": 1307e12,
}  # fmt: skip


def leave(
    job: Job,
    progress: Progress,
    trainer: Any,
    metrics: dict[str, Any],
    *,
    taken: list[dict[str, Any]],
    state: dict[str, Any],
    rows: list[Sequence],
) -> dict[str, Any]:
    """Write the version and the state after the epoch, each whole or not at all; return what is in the version's
    training.json.

    A process that stays writes the state when the job is reported done (resident.py): nobody waits for that.

    `taken`: the metrics of each step; `state`: what is noted beside the optimizer's (`step`, `parameters`); `rows`:
    what was trained on, of which a few tokens try the new weights. Every rank calls this; the first one writes.
    """
    from lightning_core.training.gather import optimizer_state, state_dict, unwrap_checkpointed

    progress.phase("saving")
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    unwrap_checkpointed(trained)
    optimizer = optimizer_state(trainer)
    part = trained._modules.pop(PART, None)  # it is not served
    weights = state_dict(trained)
    if trainer.accelerator.is_main_process:
        of_part = None if part is None else {name: t.detach().cpu() for name, t in part.state_dict().items()}
        write_behind(partial(save_state, job.state, job.epoch, optimizer, state, of_part))
        # Not forced to the disk, which publishing sees to: no later job reads this folder.
        with whole_folder(job.output, durable=False) as beside:
            save_weights(trained, job.source, beside, weights, job.base_model_name)
            progress.phase(None)
            result = metrics | {"run": job.run, "epoch": job.epoch, "policy": job.policy, "step": state["step"]}
            result |= {
                "seconds": progress.seconds,
                "peak_rss_bytes": peak_rss(),
                "seed": derive_seed(job.seed, job.epoch),
            }
            result |= throughput(trained, taken)
            result["probe"] = take_probe(trained, *probed(rows), bool(job.policy_settings.training.bf16))
            (beside / "training.json").write_text(json.dumps(result, indent=2))
        if part is not None:
            trained.add_module(PART, part)
        keep(Made(job, trained, trainer.processing_class, optimizer, state | {"epoch": job.epoch}))
    trainer.accelerator.wait_for_everyone()
    results: dict[str, Any] = json.loads((job.output / "training.json").read_text())
    return results


def probed(rows: list[Sequence]) -> tuple[list[int], int]:
    """Return token ids to try weights on, those that were sampled first in a sequence and what came before them, and
    how many of them were sampled. The sequence is the one with the most of those, after the shortest prompt."""

    def first(row: Sequence) -> tuple[int, int]:
        start = int(row.loss_mask.argmax())
        run = int(np.append(row.loss_mask[start:], False).argmin())
        return start, min(
            ASKED, max(1, run - 1)
        )  # a server that scores them samples one more, and has to have room for it

    row = max(rows, key=lambda row: (first(row)[1], -first(row)[0]))
    start, asked = first(row)
    return row.token_ids[max(0, start - CONTEXT) : start + asked].tolist(), asked


def take_probe(model: Any, token_ids: list[int], asked: int, bf16: bool = False) -> dict[str, Any] | None:
    """Return token ids and the logprobs of the last `asked` as `Probe` has them; None where this process does not hold
    all weights.

    Computed without dropout, and as training computes (in bf16, or in what the weights are): so were the logprobs by
    which the error is measured that a server may have.
    """
    import torch

    if any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in model.parameters()):
        return None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            inputs = torch.tensor([token_ids], device=model.device)
            mask, kept = torch.ones_like(inputs), asked + 1
            logits = model(input_ids=inputs, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
            logprobs = (
                torch.log_softmax(logits[0, -kept:-1].float(), -1).gather(-1, inputs[0, -asked:, None])[:, 0].tolist()
            )
    finally:
        model.train(was_training)
    kind = "bfloat16" if bf16 else str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"token_ids": token_ids, "logprobs": [round(value, 6) for value in logprobs], "dtype": kind}


def throughput(model: Any, steps: list[dict[str, Any]]) -> dict[str, float]:
    """Return tokens/s by the optimizer steps' `tokens`, `unique_tokens`, `seconds`; on a GPU its peak memory too and,
    where the device is known, the share of its bf16 peak (MFU).

    MFU counts 6 FLOP a parameter and computed token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1: forward and
    backward, attention left out; LoRA saves a part of that, which counts as used), so it is a lower bound for long
    sequences.
    """
    import torch

    seconds = sum(step["seconds"] for step in steps)
    computed = sum(step["unique_tokens"] for step in steps)
    found = {
        "tokens_per_s": sum(step["tokens"] for step in steps) / seconds,
        "unique_tokens_per_s": computed / seconds,
    }
    if torch.cuda.is_available():
        found["peak_gpu_bytes"] = float(torch.cuda.max_memory_allocated())
        peak = peak_flops(torch.cuda.get_device_name())
        if peak is not None:
            parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
            ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
            found["mfu"] = 6 * parameters * computed / seconds / peak / ranks
    return found


def peak_flops(device: str) -> float | None:
    """Return the dense bf16 FLOP/s of a device by its name; None where it is not known."""
    return next((flops for name, flops in _PEAK_FLOPS.items() if name in device), None)
