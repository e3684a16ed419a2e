"""How fast a training was, and how much of the device it used."""

from __future__ import annotations

from typing import Any

# Dense bf16 FLOP/s of the makers' data sheets, by a part of the device's name; the first that occurs.
_PEAK_FLOPS = {
    "H200": 989e12, "H100": 989e12, "H800": 989e12, "B200": 2250e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12,
    "L40": 181e12, "A10": 125e12, "L4": 121e12, "4090": 165e12, "3090": 71e12, "MI300": 1307e12,
}  # fmt: skip


def throughput(model: Any, steps: list[dict[str, Any]]) -> dict[str, float]:
    """Of the optimizer steps' `tokens`, `unique_tokens`, `seconds`: tokens/s; on a GPU its peak memory and, where the
    device is known, the share of its bf16 peak (MFU).

    MFU counts 6 FLOP a parameter and computed token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1: forward and backward, attention
    left out; LoRA saves a part of that, which counts as used), so it is a lower bound for long sequences.
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
    """Dense bf16 FLOP/s of a device by its name; None where it is not known."""
    return next((flops for name, flops in _PEAK_FLOPS.items() if name in device), None)
