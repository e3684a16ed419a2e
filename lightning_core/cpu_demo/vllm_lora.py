"""LoRA on vLLM's CPU build: a matrix product per adapter instead of an adapter per token.

vLLM copies, for every token of a batch, the whole matrices of its adapter (32 tokens of a rank of 32 on a layer of
576 by 1536: 9 MB, 200 times a step; on the logits of 49,152 tokens 200 MB), and gives tokens without an adapter the last
one's. Few adapters are in a batch at one time, so the tokens of each go through its matrices together.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Groups = list[tuple[int, torch.Tensor | None]]  # (slot, its rows or None: all)


class ByAdapter(PunicaWrapperCPU):
    """What vLLM's LoRA layers call, in place of `PunicaWrapperCPU`; `forked_engine` names it to vLLM's platform.

    `y` (rows, out) is added to, `x` (rows, in) what the adapters are multiplied with; the stacks hold a slot for each
    adapter: (slots, 1, rank, in) and (slots, 1, out, rank)."""

    _tokens: Groups
    _sampled: Groups  # the rows of the batch that a token is sampled from

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Group the rows by adapter; vLLM calls this before a batch with other adapters than the one before."""
        super().update_metadata(*args, **kwargs)
        self._tokens, self._sampled = _groups(self.token_lora_indices), _groups(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add the adapters of a linear layer.

        `y` is as wide as the sum of `output_slices`, each of which has a stack of either kind.
        """
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for part, a, b in zip(y.split(output_slices, 1), lora_a_stacked, lora_b_stacked, strict=True):
            _add(self._tokens, part, x, a, b, scale)

    def add_lora_logits(
        self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: torch.Tensor, lora_b_stacked: torch.Tensor, scale: float,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Add the adapters of the LM head; `y` may be padded.

        vLLM calls it under every adapter, with zeros for one that leaves the head alone.
        """
        width = min(y.shape[1], lora_b_stacked.shape[2])
        _add(self._sampled, y[:, :width], x, lora_a_stacked, lora_b_stacked[:, :, :width], scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """Add the adapters of the embedding; `x` (rows, rank) is what its first matrix has for each token."""
        _add(self._tokens, y, x, None, lora_b_stacked, 1.0)


def _groups(slots: torch.Tensor) -> Groups:
    """Return the rows of each slot; -1 is a row without an adapter."""
    found = slots.unique().tolist()
    return [(s, None if len(found) == 1 else (slots == s).nonzero()[:, 0]) for s in found if s >= 0]


def _add(
    groups: Groups, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor | None, b: torch.Tensor, scale: float
) -> None:
    """Add `x` times `a` (None: x as it is) times `b` times `scale` to the rows of each group, by its slot's matrices."""
    for slot, rows in groups:
        own = x if rows is None else x[rows]
        inner = own if a is None else own @ a[slot, 0].T
        if rows is None:
            y.addmm_(inner.to(y.dtype), b[slot, 0].T.to(y.dtype), alpha=scale)
        else:
            y.index_add_(0, rows, (inner @ b[slot, 0].T).to(y.dtype), alpha=scale)
