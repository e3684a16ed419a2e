"""Attention over forests: each token sees itself and its ancestors, and nothing else is computed.

On CPUs segment by segment: a segment is a run of nodes without a branch, and its queries meet the keys of its
ancestors' segments and its own, in one call of PyTorch's scaled_dot_product_attention. On GPUs by FlexAttention, whose
block mask skips what no token sees. Both are one transformers attention implementation, `lightning`, which without a
forest is plain SDPA; the forest travels as a keyword, so that gradient checkpointing has it when it computes again.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_core.training.packing import segments_of

NAME = "lightning"
BLOCK = 128  # queries and keys of a block of FlexAttention's mask


class Forest:
    """Who sees whom in a row of `n` nodes in depth-first order.

    `depth` and `end` (int64, (n,)): a node's position, and one past the last node of its subtree.
    """

    def __init__(self, depth: np.ndarray, end: np.ndarray, device: torch.device) -> None:
        self.end = end
        self.device = device
        self.segments = segments_of(depth, end)
        self.lengths = [s.stop - s.start for s in self.segments]

    def __len__(self) -> int:
        return len(self.end)

    @cached_property
    def masks(self) -> list[torch.Tensor | None]:
        """bool (own, seen) of each segment; None for a root, where PyTorch's own causal mask does."""
        masks: list[torch.Tensor | None] = []
        for segment, own in zip(self.segments, self.lengths, strict=True):
            before = sum(self.lengths[a] for a in segment.ancestors)
            seen = torch.ones(own, before + own, dtype=torch.bool, device=self.device).tril(before)
            masks.append(seen if before else None)
        return masks

    @cached_property
    def block_mask(self) -> Any:
        """FlexAttention's `BlockMask`, from the ends alone: the (n, n) mask that PyTorch's own way asks for is never made."""
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
    """Of a bool (queries, keys): each row's count, int32 (1, 1, queries), and its columns, the true ones first."""
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
    """transformers' attention function; `query` (1, heads, n, width) where there is a forest."""
    if forest is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if use_flex(query.device):
        from transformers.integrations.flex_attention import flex_attention_forward

        return flex_attention_forward(
            module, query, key, value, forest.block_mask, scaling, dropout=dropout, softcap=kwargs.get("softcap")
        )
    groups = query.shape[1] // key.shape[1]
    queries = query.split(forest.lengths, dim=2)
    keys = repeat_kv(key, groups).split(forest.lengths, dim=2)
    values = repeat_kv(value, groups).split(forest.lengths, dim=2)
    outputs = []
    for i, (segment, mask) in enumerate(zip(forest.segments, forest.masks, strict=True)):
        seen = [*segment.ancestors, i]
        outputs.append(
            scaled_dot_product_attention(
                queries[i],
                torch.cat([keys[s] for s in seen], 2) if mask is not None else keys[i],
                torch.cat([values[s] for s in seen], 2) if mask is not None else values[i],
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def use_flex(device: torch.device) -> bool:
    """FlexAttention has no backward pass on CPUs."""
    return device.type == "cuda"


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
