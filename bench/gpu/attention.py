"""Attention of a forest as training computes it, forward and backward, against PyTorch's SDPA with a dense mask."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.gpu.check import Check, Found

_HEADS, _KEYS, _WIDTH = 12, 2, 128  # of a 1.5B
_LENGTHS = (12, 200, 16384)
_SMALL = {16384: 400}
# Of the largest number, off SDPA in float32 on the same inputs.
_ALLOWED = {"float32": 2e-4, "bfloat16": 3e-2}


def checks() -> list[Check]:
    found = [
        Check(f"flex-{length}-{kind}", partial(_compare, length, kind)) for length in _LENGTHS for kind in _ALLOWED
    ]
    return [*found, Check("fa3-trie", _fa3)]


def forest(nodes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Depth and end of a forest of so many nodes: half of it is shared by eight (or fewer) pieces of the rest."""
    from lightning_core.training.packing import build_trie

    shared = rng.integers(0, 1000, nodes // 2)
    pieces = np.array_split(rng.integers(0, 1000, nodes - len(shared)), min(8, nodes - len(shared)))
    for number, piece in enumerate(pieces):
        piece[0] = 1000 + number  # another first token each, so that the trie has the nodes that were asked for
    rows = [np.concatenate([shared, piece]) for piece in pieces]
    trie = build_trie([row.astype(np.int32) for row in rows])
    assert len(trie) == nodes
    return trie.depth, trie.end


def _compare(length: int, kind: str, small: bool) -> Found:
    import torch

    from lightning_core.training.attention import Forest, attend
    from lightning_core.training.hardware import own_device

    nodes = _SMALL.get(length, length) if small else length
    device, dtype = own_device(), getattr(torch, kind)
    depth, end = forest(nodes, np.random.default_rng(nodes))
    trie = Forest(depth, end, device)
    torch.manual_seed(0)
    made = [torch.randn(1, heads, nodes, _WIDTH, device=device).to(dtype) for heads in (_HEADS, _KEYS, _KEYS)]
    upstream = torch.randn(1, nodes, _HEADS, _WIDTH, device=device).to(dtype)
    module = torch.nn.Module().train()
    places = torch.arange(nodes, device=device)
    mask = (places[None, :] <= places[:, None]) & (places[:, None] < torch.from_numpy(end).to(device)[None, :])

    def ours(query: Any, key: Any, value: Any) -> Any:
        return attend(module, query, key, value, None, forest=trie)[0]

    def dense(query: Any, key: Any, value: Any) -> Any:
        # Repeated here: asked to, SDPA takes the one of its ways that makes the square of all scores.
        key, value = (each.repeat_interleave(_HEADS // _KEYS, 1) for each in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    rounds = 1 if small else 3
    said, took = _both(ours, made, upstream, rounds)
    wanted, _ = _both(dense, [tensor.float() for tensor in made], upstream.float(), rounds=1)
    _, dense_took = _both(dense, made, upstream, rounds)
    off = max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(said, wanted, strict=True))
    return {"ok": off <= _ALLOWED[kind], "off": off, "asked": _ALLOWED[kind], "ms": took * 1e3, "sdpa_ms": dense_took * 1e3,
            "nodes": nodes, "by": "FlexAttention" if device.type == "cuda" else "segments"}  # fmt: skip


def _both(attention: Callable[..., Any], made: list[Any], upstream: Any, rounds: int) -> tuple[list[Any], float]:
    """Output and gradients, and the seconds of the shortest of some rounds of forward and backward (the first compiles)."""
    from bench.training import wait

    seconds = []
    for _ in range(1 + rounds):
        inputs = [tensor.detach().requires_grad_() for tensor in made]
        wait()
        began = time.perf_counter()
        output = attention(*inputs)
        output.backward(upstream)
        wait()
        seconds.append(time.perf_counter() - began)
    return [output.detach(), *(tensor.grad for tensor in inputs)], min(seconds[1:])


def _fa3(small: bool) -> Found:
    """TRL's trie on FlashAttention 3, where its kernel imports: what Flex has to be compared with."""
    try:
        import flash_attn_interface  # noqa: F401
    except ImportError as error:
        return {"ok": True, "skipped": f"FlashAttention 3 is not here: {error}"}
    from trl.experimental.async_grpo import packing

    names = [name for name in vars(packing) if "ree" in name]
    return {"ok": True, "skipped": f"not compared yet; TRL has {', '.join(names)}"}
