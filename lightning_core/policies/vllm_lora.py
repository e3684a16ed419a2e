"""LoRA on vLLM's CPU build: a matrix product per adapter instead of an adapter per token.

vLLM copies, for every token of a batch, the whole matrices of its adapter (32 tokens of a rank of 32 on a layer of
576 by 1536: 9 MB, 200 times a step), and gives tokens without an adapter the last one's. Few adapters are in a batch at
one time, so the tokens of each go through its matrices together.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class ByAdapter(PunicaWrapperCPU):
    """What vLLM's LoRA layers call, in place of `PunicaWrapperCPU`; `vllm_main` names it to vLLM's platform."""

    # (slot, its tokens or None: all) of the batch
    _groups: list[tuple[int, torch.Tensor | None]]

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Before a batch whose adapters differ from those of the one before."""
        super().update_metadata(*args, **kwargs)
        slots = self.token_lora_indices
        found = slots.unique().tolist()  # -1: no adapter
        self._groups = [(s, None if len(found) == 1 else (slots == s).nonzero()[:, 0]) for s in found if s >= 0]

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
        """Add the adapters' part to `y` (tokens, sum of `output_slices`), for `x` (tokens, in); stacks hold a slot each,
        (1, rank, in) and (1, out, rank), of each slice."""
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for slot, tokens in self._groups:
            own = x if tokens is None else x[tokens]
            start = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                part = y[:, start : start + width]
                added = (own @ a[slot, 0].T * scale) @ b[slot, 0].T
                if tokens is None:
                    part += added
                else:
                    part.index_add_(0, tokens, added)
                start += width
