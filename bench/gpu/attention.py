"""Attention of a forest as training computes it, forward and backward, against PyTorch's SDPA with a dense mask; beside it
TRL's, which calls FlashAttention 3 on the keys of each path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

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


def forest(nodes: int, rng: np.random.Generator) -> Any:
    """A `Trie` of so many nodes: half of it is shared by eight (or fewer) pieces of the rest."""
    from lightning_core.training.packing import build_trie

    shared = rng.integers(0, 1000, nodes // 2)
    pieces = np.array_split(rng.integers(0, 1000, nodes - len(shared)), min(8, nodes - len(shared)))
    for number, piece in enumerate(pieces):
        piece[0] = 1000 + number  # another first token each, so that the trie has the nodes that were asked for
    trie = build_trie([np.concatenate([shared, piece]).astype(np.int32) for piece in pieces])
    assert len(trie) == nodes
    return trie


class _Drawn:
    """A forest of so many nodes with random queries, keys and values, and two ways to compute its attention."""

    def __init__(self, nodes: int, kind: str) -> None:
        import torch

        from lightning_core.training.attention import Forest
        from lightning_core.training.hardware import own_device

        self.device, dtype = own_device(), getattr(torch, kind)
        self.trie = forest(nodes, np.random.default_rng(nodes))
        self.forest = Forest(self.trie.depth, self.trie.end, self.device)
        self.module = torch.nn.Module().train()
        torch.manual_seed(0)
        made = (torch.randn(1, heads, nodes, _WIDTH, device=self.device) for heads in (_HEADS, _KEYS, _KEYS))
        self.made = [tensor.to(dtype) for tensor in made]
        self.upstream = torch.randn(1, nodes, _HEADS, _WIDTH, device=self.device).to(dtype)
        places, end = torch.arange(nodes, device=self.device), torch.from_numpy(self.trie.end).to(self.device)
        self.mask = (places[None, :] <= places[:, None]) & (places[:, None] < end[None, :])

    def ours(self, query: Any, key: Any, value: Any) -> Any:
        from lightning_core.training.attention import attend

        return attend(self.module, query, key, value, None, forest=self.forest)[0]

    def dense(self, query: Any, key: Any, value: Any) -> Any:
        import torch

        # Repeated here: asked to, SDPA takes the one of its ways that makes the square of all scores.
        key, value = (each.repeat_interleave(_HEADS // _KEYS, 1) for each in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=self.mask).transpose(1, 2)

    def off(self, found: list[Any]) -> float:
        """By how much output and gradients are off SDPA in float32, of the largest number."""
        wanted, _ = _both(self.dense, [tensor.float() for tensor in self.made], self.upstream.float(), rounds=1)
        return max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def _compare(length: int, kind: str, small: bool) -> Found:
    drawn, rounds = _Drawn(_SMALL.get(length, length) if small else length, kind), 1 if small else 3
    found, took = _both(drawn.ours, drawn.made, drawn.upstream, rounds)
    _, dense_took = _both(drawn.dense, drawn.made, drawn.upstream, rounds)
    off = drawn.off(found)
    return {"ok": off <= _ALLOWED[kind], "off": off, "asked": _ALLOWED[kind], "ms": took * 1e3, "sdpa_ms": dense_took * 1e3,
            "nodes": len(drawn.trie), "by": "FlexAttention" if drawn.device.type == "cuda" else "segments"}  # fmt: skip


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
    """TRL's trie on FlashAttention 3, beside ours on the same numbers in bf16: which of them a card is faster with."""
    try:
        from trl.experimental.async_grpo import packing

        try:
            import flash_attn_interface as kernel
        except ImportError:
            kernel = packing._flash_attn()
    except Exception as error:  # noqa: BLE001 - there is no such kernel, no package that fetches it, or no network
        without = "no FlashAttention 3 (`flash_attn_interface`, or `kernels` and its hub) for TRL"
        return {"ok": True, "skipped": f"{without}: {error}"[:200]}
    drawn, rounds = _Drawn(_SMALL[_LENGTHS[-1]] if small else _LENGTHS[-1], "bfloat16"), 1 if small else 3
    _, took = _both(drawn.ours, drawn.made, drawn.upstream, rounds)
    with mock.patch.object(packing, "_flash_attn", lambda: kernel):
        found, trl_took = _by_trl(packing, drawn, rounds)
    off = drawn.off(found)
    return {"ok": off <= _ALLOWED["bfloat16"], "off": off, "asked": _ALLOWED["bfloat16"], "ms": trl_took * 1e3,
            "ours_ms": took * 1e3, "times_ours": took / trl_took, "nodes": len(drawn.trie)}  # fmt: skip


def _by_trl(packing: Any, drawn: _Drawn, rounds: int) -> tuple[list[Any], float]:
    """As `_both`, by TRL. Its trie branches a token before ours, whose number each of its places has for a token here."""
    import torch

    row = packing.TreeRow()
    for path in drawn.trie.paths:
        row.add({"input_ids": torch.from_numpy(path), "completion_mask": torch.ones(len(path)),
                 "old_log_probs": torch.zeros(len(path)), "advantage": 0.0, "group_id": 0})  # fmt: skip
    laid = {name: tensor.to(drawn.device) for name, tensor in row.pack().items()}
    longest = dict(zip(("tree_max_seqlen_q", "tree_max_seqlen_k"), laid["tree_max_seqlens"].tolist(), strict=True))
    tree = {name: laid[name] for name in ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")} | longest
    node = laid["input_ids"]
    first = torch.from_numpy(np.unique(node.cpu().numpy(), return_index=True)[1]).to(drawn.device)
    upstream = torch.zeros_like(drawn.upstream[:, node])
    upstream[:, first] = drawn.upstream

    def theirs(query: Any, key: Any, value: Any) -> Any:
        return packing.tree_attention(drawn.module, query, key, value, None, **tree)[0]

    (output, *gradients), took = _both(theirs, [tensor[:, :, node] for tensor in drawn.made], upstream, rounds)
    summed = [torch.zeros_like(of).index_add(2, node, by) for of, by in zip(drawn.made, gradients, strict=True)]
    return [output[:, first], *summed], took
