"""Attention over forests: each token sees itself and its ancestors, and nothing else is computed.

A segment is a run of nodes without a branch. Depth first, what descends from one stands right behind it: so on CPUs the
keys of a segment meet its own queries causally and all of its descendants' in one block, and what a token gets from the
segments above it is joined by their log-sum-exps. Nothing is copied per segment. On GPUs by FlexAttention, whose block mask
skips what no token sees. Both are one transformers attention implementation, `lightning`, which without a forest is plain
SDPA; the forest travels as a keyword, so that gradient checkpointing has it when it computes again.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_core.training.packing import segments_of

NAME = "lightning"
# What PyTorch's scaled_dot_product_attention calls on a CPU; it alone tells the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
BLOCK = 128  # queries and keys of a block of FlexAttention's mask
# Of the keywords that models give their attention, those that change nothing here: of a window, `why_not_packed` knows whether
# it is long enough. Another one (soft-caps, sinks) would be a part of the attention, and dropped.
_NOT_READ = {"sliding_window", "position_ids", "use_cache", "output_attentions", "is_causal"}


class Forest:
    """Who sees whom in a row of `n` nodes in depth-first order.

    `depth` and `end` (int64, (n,)): a node's position, and one past the last node of its subtree.
    """

    def __init__(self, depth: np.ndarray, end: np.ndarray, device: torch.device) -> None:
        self.depth = depth
        self.end = end
        self.device = device

    def __len__(self) -> int:
        return len(self.end)

    @cached_property
    def blocks(self) -> list[tuple[slice, slice, bool]]:
        """Return the blocks (queries, keys, causal): each segment with itself, then each segment's keys with all that
        descends from it."""
        segments = segments_of(self.depth, self.end)
        own = [(slice(s.start, s.stop), slice(s.start, s.stop), True) for s in segments]
        return own + [(slice(s.stop, s.end), slice(s.start, s.stop), False) for s in segments if s.end > s.stop]

    @cached_property
    def block_mask(self) -> Any:
        """Return FlexAttention's `BlockMask`, made from the ends alone: the (n, n) mask that PyTorch's own way asks for
        is never made."""
        from torch.nn.attention.flex_attention import BlockMask

        end = torch.from_numpy(self.end).to(self.device)

        def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return (key <= query) & (query < end[key])

        n = len(self)
        first = np.arange(0, n, BLOCK)
        below = first[:, None] > first[None, :]  # (query blocks, key blocks), as all that follows
        some = below & (np.maximum.reduceat(self.end, first) > first[:, None])
        full = below & (np.minimum.reduceat(self.end, first) >= first[:, None] + BLOCK)
        partial = (some & ~full) | np.eye(len(first), dtype=bool)
        return BlockMask.from_kv_blocks(
            *_in_order(partial, self.device),
            *_in_order(full, self.device),
            BLOCK_SIZE=BLOCK,
            mask_mod=sees,
            seq_lengths=(n, n),
        )


def _in_order(blocks: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each row of the bool `blocks` (queries, keys), how many are true, int32 (1, 1, queries), and the
    columns, the true ones first."""
    columns = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    counts = blocks.sum(1, dtype=np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(columns)[None, None].to(device)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    forest: Forest | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, Any]:
    """Compute attention as transformers asks for it; `query` is (1, heads, n, width) where there is a forest.

    Raises ValueError for a keyword that would change a forest's attention and is not known.
    """
    if forest is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in _NOT_READ)
    if unknown:
        raise ValueError(f"the attention of tries does not know its {', '.join(f'`{name}`' for name in unknown)}")
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # which knows PyTorch's attention, and these not in every version
        lower = torch.get_autocast_dtype(kind)
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
    if use_flex(query.device):
        return _flex_attention()(module, query, key, value, forest.block_mask, scaling, dropout=dropout)
    output = _BySegments.apply(query, key, value, forest, scaling)
    return output.transpose(1, 2).contiguous(), None


@cache
def _flex_attention() -> Any:
    import torch._dynamo
    from transformers.integrations.flex_attention import flex_attention_forward

    # One each for what differs in kind (gradients or none, lengths of a block or more, dtypes): past PyTorch's 8 it would no
    # longer compile, and make the square of all scores.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return flex_attention_forward


class _BySegments(torch.autograd.Function):
    """Attention of a forest on a CPU, from the blocks that PyTorch's flash attention computes.

    `query` (1, heads, n, width), `key` and `value` (1, kv_heads, n, width). A block's own softmax is over its keys alone; the
    output of a token is the mean of its blocks' by the weights exp(log-sum-exp). In the backward pass each block gets the
    joint output and log-sum-exp, by which its gradients are those of the whole softmax (FlashAttention-2, algorithm 2).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, forest: Forest, scale: float | None
    ) -> torch.Tensor:
        _, heads, n, _ = query.shape
        groups = heads // key.shape[1]
        keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
        kind = torch.promote_types(query.dtype, torch.float32)
        output = query.new_empty(query.shape, dtype=kind)
        logsumexp = query.new_empty(1, n, heads, dtype=kind).transpose(1, 2)  # as PyTorch lays it out
        for asking, seen, causal in forest.blocks:
            part, weight = _flash(
                query[:, :, asking], keys[:, :, seen], values[:, :, seen], is_causal=causal, scale=scale
            )
            out, before = output[:, :, asking], logsumexp[:, :, asking]
            if causal:  # a token's first block
                out.copy_(part)
                before.copy_(weight)
                continue
            joint = torch.logaddexp(before, weight)
            out.mul_(torch.exp(before - joint).unsqueeze(-1))
            out.addcmul_(part.to(out.dtype), torch.exp(weight - joint).unsqueeze(-1))
            before.copy_(joint)
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.forest, ctx.scale = forest, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, logsumexp = ctx.saved_tensors
        groups = query.shape[1] // key.shape[1]
        keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
        of_query, of_keys, of_values = (query.new_zeros(query.shape, dtype=logsumexp.dtype) for _ in range(3))
        for asking, seen, causal in ctx.forest.blocks:
            parts = _flash_backward(
                gradient[:, :, asking],
                query[:, :, asking],
                keys[:, :, seen],
                values[:, :, seen],
                output[:, :, asking],
                logsumexp[:, :, asking],
                0.0,
                causal,
                scale=ctx.scale,
            )
            of_query[:, :, asking] += parts[0]
            of_keys[:, :, seen] += parts[1]
            of_values[:, :, seen] += parts[2]
        # Of the heads that share a key: what each made of it.
        grouped = (of_query, *(of.unflatten(1, (-1, groups)).sum(2) for of in (of_keys, of_values)))
        return (*(of.to(query.dtype) for of in grouped), None, None)


def use_flex(device: torch.device) -> bool:
    """Return whether to attend by FlexAttention, on GPUs alone: it has no backward pass on CPUs."""
    return device.type == "cuda"


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
