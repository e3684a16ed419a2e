"""vLLM on the card: its probe against the trainer's, and turns on one card: sleep, train, wake up into the new version, swap.

By the product's own code, on random weights. A vLLM for CPUs cannot sleep: there the turns are train and swap. Beside it
vLLM's own way, weights handed over by CUDA IPC from a trainer's memory on the same card.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench import training_sequences as drawn
from bench.gpu.check import Check, Found
from bench.report import say
from bench.shapes import SHAPES
from lightning_core.config import PolicySettings, VllmSettings
from lightning_core.gpus import cards
from lightning_core.policies.adapters import load_lora
from lightning_core.policies.probe import ASKED, Probe, difference, tolerance
from lightning_core.policies.redeploy import hot_swap
from lightning_core.policies.sleep import asleep
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmClient
from lightning_core.policies.vllm_command import cpu_build
from lightning_core.training.dataset import Sequence
from lightning_core.training.job import Job

_SWAP_S = 1.0  # of a 1.5B
_RANK = 16


def checks() -> list[Check]:
    return [
        Check("probe-bf16", partial(_probe, "bfloat16"), vllm=True),
        Check("probe-fp32", partial(_probe, "float32"), vllm=True),
        Check("turns-full", partial(_turns, False), vllm=True),
        Check("turns-lora", partial(_turns, True), vllm=True),
        Check("swap-ipc", _handed_over, vllm=True),
    ]


def _probe(kind: str, small: bool) -> Found:
    """The base model's logprobs by vLLM, against the trainer's, which computes in the same."""
    from lightning_core.training.hardware import own_device
    from lightning_core.training.new_version import take_probe
    from lightning_core.training.weights import load_model

    with _base(small) as (base, home):
        model = load_model(base).to(own_device())
        taken = take_probe(
            model, np.random.default_rng(0).integers(0, 250, 2 * ASKED).tolist(), ASKED, kind == "bfloat16"
        )
        assert taken is not None
        probe = Probe.model_validate(taken)
        del model
        _free()
        with _serving(base, home, dtype=kind) as vllm, vllm.client() as client:
            off = difference(client.logprobs(vllm.state.served_name, probe.token_ids)[-ASKED:], probe.logprobs)
    allowed = tolerance(probe, kind)
    return {"ok": off <= allowed, "nats": off, "asked": allowed}


def _turns(adapter: bool, small: bool) -> Found:
    """Seconds of each turn: two trainings, each by a process of its own, while vLLM sleeps; it wakes up into the first version,
    and gets the second from its files while it is awake."""
    from lightning_core.training.launch import train

    cpu = cpu_build()
    training = {"max_mismatch": None, "learning_rate": 1e-4, "tokens_per_micro_batch": 2048 if small else 16384}
    policy = PolicySettings.model_validate({"training": training} | ({"lora": {"rank": _RANK}} if adapter else {}))
    seconds: dict[str, float] = {}
    with _base(small) as (base, home):
        jobs = [_job(policy, base, home, number, small) for number in (1, 2)]
        with _serving(base, home, colocated=not cpu, lora_rank=_RANK if adapter else None) as vllm:
            free = [_gb_free()]
            began = time.monotonic()
            with contextlib.nullcontext() if cpu else asleep(vllm, 1 if adapter else 2):
                seconds["sleep"] = time.monotonic() - began
                free.append(_gb_free())
                began = time.monotonic()
                made = [train(job, lambda line: None, home / "train.log").result["probe"] for job in jobs]
                seconds["train"] = (time.monotonic() - began) / len(jobs)
                began = time.monotonic()
            seconds["wake"] = time.monotonic() - began  # an adapter's base; full weights wake up with the first version
            for job, probe, when in zip(jobs, made, ("first", "awake"), strict=False):
                done = _bring(vllm, job.output, job.output.name, probe, adapter)
                seconds |= {f"{when} {step}": took for step, took in done.seconds.items()}
    swap = seconds["awake load"] if adapter else done.paused_s
    found = {
        "seconds": {name: round(took, 3) for name, took in seconds.items()},
        "swap_s": swap,
        "verified": done.verified,
    }
    freed = {} if cpu else {"gb_freed": free[1] - free[0]}
    return {"ok": small or swap <= _SWAP_S, "asked": {"swap_s": _SWAP_S}, "slept": not cpu} | freed | found


def _bring(vllm: VllmServer, folder: Path, version: str, taken: Any, adapter: bool) -> Any:
    probe = Probe.model_validate(taken) if taken else None
    if adapter:
        return load_lora(vllm, "policy", version, folder, probe=probe)
    return hot_swap(vllm, folder, version, probe=probe)


def _handed_over(small: bool) -> Found:
    """Seconds without an answer: full weights from a file, and from a trainer's memory by CUDA IPC, where that has expandable
    segments (as trainings have) and where not."""
    if cpu_build():
        return {"ok": True, "skipped": "CUDA IPC hands over memory of a card; this vLLM computes on the CPU"}
    import torch

    from lightning_core.training.hardware import own_device
    from lightning_core.training.weights import load_model

    # vLLM gets its arguments pickled; only we can reach its socket.
    unpickles = mock.patch.dict(os.environ, VLLM_ALLOW_INSECURE_SERIALIZATION="1")
    shares = ["--weight-transfer-config", '{"backend": "ipc"}', "--gpu-memory-utilization", "0.5"]
    seconds: dict[str, float] = {}
    with unpickles, _base(small) as (base, home), _serving(base, home, extra_args=shares) as vllm:
        for number, way in enumerate(("file", "ipc", "ipc expandable"), 1):
            torch._C._accelerator_setAllocatorSettings(f"expandable_segments:{way == 'ipc expandable'}")
            model = load_model(base).to(own_device())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + 0.01 * number)
            folder = home / f"v000{number}"
            model.save_pretrained(folder)
            if way == "file":
                seconds[way] = hot_swap(vllm, folder, folder.name).paused_s
            else:
                with vllm.client() as client:
                    began = time.monotonic()
                    client.pause("keep")
                    hand_over(model, client)
                    client.reset_prefix_cache()
                    client.resume()
                    seconds[way] = time.monotonic() - began
                    equal = client.compare(folder)
            del model
            _free()
    return {
        "ok": small or seconds["ipc"] <= _SWAP_S,
        "asked": {"ipc": _SWAP_S},
        "seconds": seconds,
        "tensors_equal": equal,
    }


def hand_over(model: Any, client: VllmClient) -> None:
    """Have a vLLM that was started with `--weight-transfer-config` read the weights of `model` where they are."""
    from vllm.distributed.weight_transfer.base import ModuleSource
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    class OverSocket(HTTPVLLMWeightSyncClient):
        def _post(self, path: str, json: dict[str, Any] | None = None) -> None:
            client.request("POST", f"/{path}", json=json)

    sender = IPCTrainerInitInfo(rank=0)
    WeightTransferTrainerFactory.trainer_init(
        sender, client=OverSocket("http://vllm"), source=ModuleSource(model)
    ).send_weights()


def _job(policy: PolicySettings, base: Path, home: Path, number: int, small: bool) -> Job:
    from tests.training_data import write_parquet

    rng = np.random.default_rng(number)
    sequences: list[Sequence] = drawn.unshared(rng, 4 if small else 16, 64 if small else 1024, words=250)
    return Job(
        run="gpu-check", epoch=0, policy="policy", policy_settings=policy, base_model=base, state=home / f"state-{number}",
        sequences=write_parquet(sequences, home / f"sequences-{number}.parquet"), output=home / f"v000{number}",
        progress=home / f"progress-{number}.jsonl",
    )  # fmt: skip


@contextlib.contextmanager
def _base(small: bool) -> Iterator[tuple[Path, Path]]:
    """A folder with random weights, of a 1.5B or tiny, and one to work in."""
    from bench.training import make_model
    from tests.tiny_model import make_tiny_llama, make_tiny_tokenizer

    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        home = Path(name)
        if small:
            make_tiny_llama(home / "base")
        else:
            make_model(SHAPES["1.5B"]).save_pretrained(home / "base")
            make_tiny_tokenizer().save_pretrained(home / "base")
        yield home / "base", home


@contextlib.contextmanager
def _serving(base: Path, home: Path, *, lora_rank: int | None = None, **settings: Any) -> Iterator[VllmServer]:
    given = VllmSettings.model_validate({"max_model_len": 1024, "kv_cache_gb": 0.1} | settings)
    began = time.monotonic()
    vllm = VllmServer.start(given, base, "policy", home=home, lora_rank=lora_rank, on_progress=lambda _: None)
    say(f"vLLM: ready after {time.monotonic() - began:.0f} s")
    try:
        yield vllm
    finally:
        vllm.stop()


def _gb_free() -> float:
    here = cards()
    return here[0].free / 1e9 if here else 0.0


def _free() -> None:
    from lightning_core.training.weights import free_memory

    free_memory()
