"""What a training leaves behind, by whatever algorithm: the optimizer's state, and the new version with what was measured."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lightning_core.training.job import Job, Progress, derive_seed, peak_rss
from lightning_core.training.probe import take_probe
from lightning_core.training.state import save_state
from lightning_core.training.throughput import throughput
from lightning_core.training.weights import save_weights, whole_folder


def leave(
    job: Job,
    progress: Progress,
    trainer: Any,
    metrics: dict[str, Any],
    *,
    taken: list[dict[str, Any]],
    state: dict[str, Any],
    probed: list[int],
) -> dict[str, Any]:
    """Write the state after the epoch, then the version, each whole or not at all; return what is in its training.json.

    `taken`: the metrics of each step; `state`: what is noted beside the optimizer's (`step`, `parameters`); `probed`: tokens
    to try the new weights on. Every rank calls this; the first one writes.
    """
    from lightning_core.training.gather import optimizer_state, state_dict, unwrap_checkpointed

    progress.phase("saving")
    # Without the autocast of `bf16`: the server's logprobs are compared with those of the weights as they are saved.
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    unwrap_checkpointed(trained)
    weights, optimizer = state_dict(trained), optimizer_state(trainer)
    if trainer.accelerator.is_main_process:
        # Side by side: the one computes while the other waits for the disk.
        with ThreadPoolExecutor(1) as threads, whole_folder(job.output) as beside:
            saved = threads.submit(save_state, job.state, job.epoch, optimizer, state)
            try:
                save_weights(trained, job.source, beside, weights, job.base_model_name)
            finally:
                saved.result()  # before there is a version
            progress.phase(None)
            result = metrics | {"run": job.run, "epoch": job.epoch, "policy": job.policy, "step": state["step"]}
            result |= {
                "seconds": progress.seconds,
                "peak_rss_bytes": peak_rss(),
                "seed": derive_seed(job.seed, job.epoch),
            }
            result |= throughput(trained, taken)
            result["probe"] = take_probe(trained, probed)
            (beside / "training.json").write_text(json.dumps(result, indent=2))
    trainer.accelerator.wait_for_everyone()
    told: dict[str, Any] = json.loads((job.output / "training.json").read_text())
    return told
