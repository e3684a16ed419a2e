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
    """What vLLM's LoRA layers call, in place of `PunicaWrapperCPU`; `vllm_main` names it to vLLM's platform.

    `y` (rows, out) is added to, `x` (rows, in) what the adapters are multiplied with; the stacks hold a slot for each
    adapter: (slots, 1, rank, in) and (slots, 1, out, rank)."""

    _tokens: Groups
    _sampled: Groups  # the rows of the batch that a token is sampled from

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Before a batch whose adapters differ from those of the one before."""
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
        """A linear layer; `y` is as wide as the sum of `output_slices`, each of which has a stack of either kind."""
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        slices = list(zip(y.split(output_slices, 1), lora_a_stacked, lora_b_stacked, strict=True))
        for slot, rows in self._tokens:
            own = x if rows is None else x[rows]
            for part, a, b in slices:
                _add(part, rows, own @ a[slot, 0].T, b[slot, 0].T, scale)

    def add_lora_logits(
        self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: torch.Tensor, lora_b_stacked: torch.Tensor, scale: float,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """The LM head. vLLM asks for it under every adapter, with zeros for one that leaves it alone; `y` may be padded."""
        y = y[:, : lora_b_stacked.shape[2]]
        for slot, rows in self._sampled:
            own = x if rows is None else x[rows]
            _add(y, rows, own @ lora_a_stacked[slot, 0].T, lora_b_stacked[slot, 0, : y.shape[1]].T, scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """The embedding; `x` (rows, rank) is what its first matrix has for each token."""
        for slot, rows in self._tokens:
            _add(y, rows, x if rows is None else x[rows], lora_b_stacked[slot, 0].T, 1.0)


def _groups(slots: torch.Tensor) -> Groups:
    """The rows of each slot; -1 is a row without an adapter."""
    found = slots.unique().tolist()
    return [(s, None if len(found) == 1 else (slots == s).nonzero()[:, 0]) for s in found if s >= 0]


def _add(y: torch.Tensor, rows: torch.Tensor | None, inner: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    if rows is None:
        y.addmm_(inner.to(y.dtype), b.to(y.dtype), alpha=scale)
    else:
        y.index_add_(0, rows, (inner @ b).to(y.dtype), alpha=scale)
