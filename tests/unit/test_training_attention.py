"""Which attention computes a forest, that it is the attention of the whole mask, and that FlexAttention's mask is that mask."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightning_core.training.packing import build_trie, forest_layout
from tests.training_data import one_thread, random_group

pytestmark = pytest.mark.slow  # it imports TRL


@pytest.fixture(scope="module", autouse=True)
def _trl() -> Iterator[None]:
    with one_thread():
        yield


def forest() -> Any:
    import torch

    from lightning_core.training.attention import Forest

    rng = np.random.default_rng(4)
    layout = forest_layout([random_group(name, 4, rng) for name in "ab"])
    assert layout.depth is not None and layout.end is not None
    return Forest(layout.depth, layout.end, torch.device("cpu"))


def branching(lengths: list[int]) -> Any:
    """A trie of rows, each branching off a random earlier one."""
    rng = np.random.default_rng(len(lengths))
    rows: list[np.ndarray] = []
    for length in lengths:
        shared = rows[rng.integers(len(rows))] if rows else np.zeros(0, np.int32)
        kept = shared[: rng.integers(len(shared) + 1)]
        rows.append(np.concatenate([kept, rng.integers(1000, size=length, dtype=np.int32)]))
    return build_trie(rows)


def test_gpus_take_flex_attention_and_cpus_where_it_has_no_backward_pass_segments() -> None:
    import torch

    from lightning_core.training.attention import use_flex

    assert use_flex(torch.device("cuda:0"))
    assert not use_flex(torch.device("cpu"))


def test_flex_attention_with_the_forests_mask_gives_what_segments_give() -> None:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    from lightning_core.training.attention import attend

    trees = forest()
    torch.manual_seed(0)
    query = torch.randn(1, 4, len(trees), 16)
    key, value = torch.randn(1, 2, len(trees), 16), torch.randn(1, 2, len(trees), 16)
    module: Any = SimpleNamespace(training=False)
    segments, _ = attend(module, query, key, value, None, scaling=0.25, forest=trees)
    with torch.no_grad():
        flex = flex_attention(query, key, value, block_mask=trees.block_mask, scale=0.25, enable_gqa=True)
    torch.testing.assert_close(segments, flex.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_flex_attentions_gradients_with_the_forests_mask_are_those_of_the_whole_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is traced on a GPU (aot_eager); of its kernels a CPU has none. Lengths that fill no block."""
    import torch
    from torch.nn.attention import flex_attention as flex

    from lightning_core.training.attention import Forest

    trie = branching([129, 1, 40, 200])
    trees, n = Forest(trie.depth, trie.end, torch.device("cpu")), len(trie)
    assert n % 128
    torch.manual_seed(0)
    query, key, value, toward = (torch.randn(1, heads, n, 16) for heads in (6, 2, 2, 6))
    for tensor in (query, key, value):
        tensor.requires_grad_()
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # which lets no gradient on a CPU through
    compiled = torch.compile(flex.flex_attention, backend="aot_eager")
    found = compiled(query, key, value, block_mask=trees.block_mask, scale=0.3, enable_gqa=True)
    whole = whole_attention(query, key, value, trie)
    gradients, expected = (torch.autograd.grad(of, (query, key, value), toward) for of in (found, whole))
    for one, other in zip((found, *gradients), (whole, *expected), strict=True):
        assert float((one - other).detach().abs().max()) <= 2e-6 * float(other.detach().abs().max())


def whole_attention(query: Any, key: Any, value: Any, trie: Any) -> Any:
    """By the (n, n) mask; three heads to a key."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    at, end = torch.arange(len(trie)), torch.from_numpy(trie.end)
    mask = (at[None, :] <= at[:, None]) & (at[:, None] < end[None, :])
    groups = [tensor.repeat_interleave(3, 1) for tensor in (key, value)]
    return scaled_dot_product_attention(query, *groups, attn_mask=mask, scale=0.3)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "something_new"])
def test_what_a_model_asks_of_its_attention_beyond_a_mask_is_refused_and_not_dropped(name: str) -> None:
    import torch

    from lightning_core.training.attention import attend

    trees = forest()
    query = torch.randn(1, 2, len(trees), 16)
    module: Any = SimpleNamespace(training=False)
    with pytest.raises(ValueError, match=f"does not know its `{name}`"):
        attend(module, query, query, query, None, forest=trees, sliding_window=4096, **{name: 30.0})
    absent: dict[str, Any] = {name: None}
    attend(module, query, query, query, None, forest=trees, sliding_window=4096, **absent)


@pytest.mark.parametrize(
    ("kind", "autocast", "tolerance"),
    [("float64", False, 1e-12), ("float32", False, 1e-5), ("bfloat16", False, 0.03), ("float32", True, 0.03)],
)
@pytest.mark.parametrize("lengths", [[1], [7, 1, 1], [60, 5, 90, 40, 3, 20, 20, 9], [30] * 12], ids=str)
def test_outputs_and_gradients_by_segments_are_those_of_the_whole_mask(
    lengths: list[int], kind: str, autocast: bool, tolerance: float
) -> None:
    import torch

    from lightning_core.training.attention import Forest, attend

    trie = branching(lengths)
    trees, n = Forest(trie.depth, trie.end, torch.device("cpu")), len(trie)
    torch.manual_seed(len(lengths))
    query, key, value, toward = (
        torch.randn(1, heads, n, 16, dtype=torch.float64).to(getattr(torch, kind)) for heads in (6, 2, 2, 6)
    )
    for tensor in (query, key, value):
        tensor.requires_grad_()
    module: Any = SimpleNamespace(training=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, _ = attend(module, query, key, value, None, scaling=0.3, forest=trees)
    whole = whole_attention(query.double(), key.double(), value.double(), trie)
    assert ours.dtype == (torch.bfloat16 if autocast else query.dtype)
    found, expected = ours.transpose(1, 2), (whole, *torch.autograd.grad(whole, (query, key, value), toward.double()))
    gradients = torch.autograd.grad(found, (query, key, value), toward.to(found.dtype))
    for one, other in zip((found, *gradients), expected, strict=True):
        largest = float(other.detach().abs().max())
        assert float((one.double() - other.double()).detach().abs().max()) <= tolerance * max(1, largest)


@pytest.mark.parametrize(
    "lengths",
    [[1], [127], [128], [256, 3], [300, 90, 1, 200], [500, 40, 41, 42, 300], [129, 1, 1, 1, 400, 260]],
    ids=str,
)
def test_the_block_mask_is_the_one_pytorch_makes_of_the_whole_mask(lengths: list[int]) -> None:
    """Blocks none, partly and wholly seen."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    from lightning_core.training.attention import Forest

    trie = branching(lengths)
    ours = Forest(trie.depth, trie.end, torch.device("cpu")).block_mask
    theirs = create_block_mask(ours.mask_mod, None, None, len(trie), len(trie), "cpu")
    torch.testing.assert_close(ours.to_dense(), theirs.to_dense())
    parts = [kind + name for kind in ("kv_", "full_kv_", "q_", "full_q_") for name in ("num_blocks", "indices")]
    for name in parts:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), msg=name)
    assert (ours.seq_lengths, ours.BLOCK_SIZE) == (theirs.seq_lengths, theirs.BLOCK_SIZE)


def test_without_a_forest_it_is_plain_causal_attention() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from lightning_core.training.attention import attend

    query, key, value = torch.randn(3, 1, 2, 7, 16)
    module: Any = SimpleNamespace(training=False, is_causal=True)
    ours, _ = attend(module, query, key, value, None, scaling=0.25)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.25)
    torch.testing.assert_close(ours, expected.transpose(1, 2))
