"""LoRA by adapter gives what vLLM's own CPU code gives, and nothing to tokens without an adapter."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow  # it imports vLLM

SLOTS, RANK, WIDTH, SLICES = 3, 4, 16, (8, 12)


def wrapper(cls: Any, adapters: list[int], prefill: bool) -> Any:
    """With adapters 7, 8, 9 in the slots; `adapters` has one a token, 0 for none."""
    from vllm.lora.layers import LoRAMapping

    made = cls(max_num_batched_tokens=64, max_batches=64, device="cpu")
    mapping = LoRAMapping(tuple(adapters), tuple(adapters), is_prefill=prefill)
    made.update_metadata(mapping, [7, 8, 9], SLOTS, 100)
    return made


def output(cls: Any, adapters: list[int], prefill: bool, layer: str) -> Any:
    """What a layer gives with the adapters, and what without."""
    import torch

    torch.manual_seed(0)
    x, y = torch.randn(len(adapters), WIDTH), torch.randn(len(adapters), sum(SLICES))
    a = tuple(torch.randn(SLOTS, 1, RANK, WIDTH) for _ in SLICES)
    b = tuple(torch.randn(SLOTS, 1, out, RANK) for out in SLICES)
    before = y.clone()
    computed = wrapper(cls, adapters, prefill)
    if layer == "linear":
        computed.add_lora_linear(y, x, a, b, 0.5, SLICES)
    elif layer == "logits":  # padded by 3
        computed.add_lora_logits(y, x, a[0], torch.randn(SLOTS, 1, sum(SLICES) - 3, RANK), 0.5)
    else:
        computed.add_lora_embedding(y, x[:, :RANK], torch.randn(SLOTS, 1, sum(SLICES), RANK), add_inputs=True)
    return y, before


LAYERS = pytest.mark.parametrize("layer", ["linear", "logits", "embedding"])


@LAYERS
@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("adapters", [[7], [8, 8, 8], [9, 7, 7, 9, 8], [7, 9]], ids=str)
def test_tokens_of_every_adapter_get_what_vllm_gives_them(adapters: list[int], prefill: bool, layer: str) -> None:
    import torch
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from lightning_core.cpu_demo.vllm_lora import ByAdapter

    ours, before = output(ByAdapter, adapters, prefill, layer)
    theirs, _ = output(PunicaWrapperCPU, adapters, prefill, layer)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, before)


@LAYERS
@pytest.mark.parametrize("prefill", [True, False])
def test_a_token_without_an_adapter_stays_as_it_is(prefill: bool, layer: str) -> None:
    import torch

    from lightning_core.cpu_demo.vllm_lora import ByAdapter

    after, before = output(ByAdapter, [7, 0, 9, 0], prefill, layer)
    assert torch.equal(after[1::2], before[1::2]) and not torch.allclose(after[::2], before[::2])
    after, before = output(ByAdapter, [0, 0], prefill, layer)
    assert torch.equal(after, before)


def test_vllm_still_asks_its_platform_which_class_computes_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.punica_wrapper.punica_selector import get_punica_wrapper
    from vllm.platforms import current_platform

    from lightning_core.cpu_demo.forked_engine import LORA
    from lightning_core.cpu_demo.vllm_lora import ByAdapter

    monkeypatch.setattr(current_platform, "get_punica_wrapper", lambda: LORA)
    assert isinstance(get_punica_wrapper(max_num_batched_tokens=8, max_batches=8, device="cpu"), ByAdapter)
