"""The check of a GPU (`make gpu-check`), on none: its lines, and what it counts."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.gpu import attention, steps
from bench.gpu.__main__ import main
from bench.gpu.check import Check, Found, run
from bench.shapes import SHAPES
from bench.training_sequences import long_merged, unshared
from lightning_core.training.micro_batches import plan_steps


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_check_that_fails_has_its_line_and_the_next_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(small: bool) -> Found:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    slow, right = (lambda small: {"ok": False, "tokens_per_s": 12.3456}), (lambda small: {"ok": small})
    assert run([Check("broken", broken), Check("slow", slow), Check("right", right)], small=True) == 2
    said = lines(capsys)
    assert [(line["check"], line["ok"]) for line in said] == [("broken", False), ("slow", False), ("right", True)]
    assert "illegal memory access" in said[0]["error"] and said[1]["tokens_per_s"] == 12.35


def test_one_of_them_is_run_by_its_name_and_what_needs_vllm_can_be_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--list"])
    main()
    every = lines(capsys)
    monkeypatch.setattr("sys.argv", ["gpu", "--list", "--trainer-only"])
    main()
    assert lines(capsys) == [line for line in every if not line["vllm"]] != every
    monkeypatch.setattr("sys.argv", ["gpu", "--list", "--only", "turns"])
    main()
    assert [line["check"] for line in lines(capsys)] == ["turns-full", "turns-lora"]


@pytest.mark.parametrize("nodes", [1, 2, 12, 200, 1000])
def test_a_forest_has_the_nodes_that_were_asked_for(nodes: int) -> None:
    trie = attention.forest(nodes, np.random.default_rng(0))
    assert len(trie.depth) == len(trie.end) == nodes
    assert trie.end.max() == nodes and (nodes < 12 or trie.depth.max() < nodes - 1), "it branches"


def flash(
    query: Any, key: Any, value: Any, asking: Any, seen: Any, *_: Any, softmax_scale: Any, causal: bool, **__: Any
) -> Any:
    """What FlashAttention's `flash_attn_varlen_func` computes: the last query of a segment sees all of its keys."""
    import torch

    parts = []
    for (q, q_end), (k, k_end) in zip(pairwise(asking.tolist()), pairwise(seen.tolist()), strict=True):
        mask = torch.ones(q_end - q, k_end - k, dtype=torch.bool)
        mask = mask.tril(k_end - k - q_end + q) if causal else mask
        of = (query[q:q_end], key[k:k_end], value[k:k_end])
        q_, k_, v_ = (tensor.transpose(0, 1)[None] for tensor in of)
        part = torch.nn.functional.scaled_dot_product_attention(q_, k_, v_, mask, scale=softmax_scale, enable_gqa=True)
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.slow  # it imports TRL's trainers
def test_trls_trie_is_compared_where_its_kernel_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """By TRL's own code; the kernel, which needs a Hopper, is computed by PyTorch."""
    assert "no FlashAttention 3" in attention._fa3(small=True)["skipped"]
    for causal in (True, False):
        kernel = SimpleNamespace(flash_attn_varlen_func=lambda *a, causal, c=causal, **k: flash(*a, causal=c, **k))
        monkeypatch.setitem(sys.modules, "flash_attn_interface", kernel)
        found = attention._fa3(small=True)
        assert found["ok"] is causal, found
        assert found["nodes"] == 400 and found["times_ours"] > 0


def test_the_share_of_a_cards_peak_counts_unique_tokens_and_what_each_of_them_sees() -> None:
    shape = SHAPES["0.5B"]
    layer = 896 * (2 * 896 + 2 * 128) + 3 * 896 * 4864 + 2 * 896
    parameters = 24 * layer + 151936 * 896
    rng = np.random.default_rng(0)

    def step(rows: Any) -> Any:
        return plan_steps(rows, steps=1, seed=0, packing="tree", budget=8192, loss_type="dapo", completion_limit=64)[0]

    pairs = 2 * 64 * 65 // 2
    counted = 2 * 64 * 6 * parameters + 12 * 24 * 896 * pairs
    assert steps.flops(shape, step(unshared(rng, 2, 64)), adapter=False) == counted
    assert steps.flops(shape, step(unshared(rng, 2, 64)), adapter=True) == counted - 2 * 64 * 2 * parameters
    shared = step(long_merged(rng, 500))
    assert shared.unique_tokens < shared.tokens / 3
    assert steps.flops(shape, shared, adapter=False) < 1.1 * shared.unique_tokens * 6 * parameters
