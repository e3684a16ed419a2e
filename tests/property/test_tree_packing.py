"""Packed or padded, the same sequences give the same loss and the same gradients; the trie is what it says it is."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_core.training.dataset import Sequence
from lightning_core.training.packing import build_trie, forest_layout, padded_layout, segments_of, split_rows
from tests.examples import of_many
from tests.training_data import make_sequence, one_thread

# Few token ids, so that sequences branch early and late, and some are equal or prefixes of others.
_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)
_turns = st.lists(st.tuples(_tokens, _tokens), min_size=1, max_size=3)
_groups = st.lists(st.lists(_turns, min_size=1, max_size=5), min_size=1, max_size=3)


def _make(drawn: list[list[list[tuple[list[int], list[int]]]]]) -> list[list[Sequence]]:
    return [
        [make_sequence(f"{g}.{i}", str(g), turns, seed=i) for i, turns in enumerate(group)]
        for g, group in enumerate(drawn)
    ]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=8))
def test_a_trie_holds_each_shared_prefix_once_and_every_path_spells_its_sequence(drawn: list[list[int]]) -> None:
    sequences = [np.array(ids, np.int32) for ids in drawn]
    trie = build_trie(sequences)
    assert len(trie) == len({tuple(ids[: n + 1]) for ids in drawn for n in range(len(ids))})
    at = np.arange(len(trie))
    ancestors = (at[None, :] <= at[:, None]) & (at[:, None] < trie.end[None, :])
    for ids, path in zip(sequences, trie.paths, strict=True):
        np.testing.assert_array_equal(trie.tokens[path], ids)
        np.testing.assert_array_equal(trie.depth[path], np.arange(len(ids)))
        for depth, node in enumerate(path):
            np.testing.assert_array_equal(np.flatnonzero(ancestors[node]), path[: depth + 1])


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=8), st.integers(4, 40))
def test_rows_hold_every_sequence_once_within_the_budget_and_say_their_true_size(
    drawn: list[list[int]], budget: int
) -> None:
    sequences = [np.array(ids, np.int32) for ids in drawn]
    rows = split_rows(sequences, budget)
    assert sorted(i for indices, _ in rows for i in indices) == list(range(len(sequences)))
    for indices, size in rows:
        assert size == len(build_trie([sequences[i] for i in indices]))
        assert size <= budget or len(indices) == 1


@of_many(examples=40)
@given(_groups)
def test_segments_of_a_forest_cover_it_and_see_exactly_what_the_trie_says(
    drawn: list[list[list[tuple[list[int], list[int]]]]],
) -> None:
    layout = forest_layout(_make(drawn))
    assert layout.depth is not None and layout.end is not None
    segments = segments_of(layout.depth, layout.end)
    assert [s.start for s in segments] == [0, *(s.stop for s in segments[:-1])]
    at = np.arange(len(layout.depth))
    expected = (at[None, :] <= at[:, None]) & (at[:, None] < layout.end[None, :])
    for segment in segments:
        before = [i for s in segments if s.stop <= segment.start < s.end for i in range(s.start, s.stop)]
        for node in range(segment.start, segment.stop):
            seen = [*before, *range(segment.start, node + 1)]
            np.testing.assert_array_equal(np.flatnonzero(expected[node]), seen)


EPSILON = float(torch.finfo(torch.float32).eps)


@functools.cache
def _model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from lightning_core.training.scoring import why_not_packed

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    assert why_not_packed(model, 100) is None
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def _loss_and_gradients(
    sequences: list[Sequence], layout: Any
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    from lightning_core.training.scoring import score

    model = _model()
    model.zero_grad()
    logps, entropies = score(model, model, layout)
    advantages = torch.zeros(layout.gather.shape)
    for row, sequence in enumerate(sequences):
        rest = torch.from_numpy(sequence.advantages[sequence.prompt_length :])
        advantages[row, : len(rest)] = rest
    (logps * advantages).sum().backward()
    return logps.detach(), entropies.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.slow  # it computes gradients, each several times
@of_many(examples=12)
@given(_groups)
@example([[[([0, 1], [2, 2])], [([0, 1], [2, 2])]]])  # equal sequences
@example([[[([0], [0, 0])]]])  # all keys alike: their gradients are 0, but for rounding
@example([[[([0, 1], [2])], [([0, 1], [2, 0, 1])], [([0], [1, 2, 0])]]])  # prefixes, and prompts of unequal length
@example([[[([0], [1]), ([2, 2], [0, 1])], [([0], [1]), ([2, 1], [0])]], [[([1], [1])]]])  # merged turns, two rows
def test_packed_and_padded_scores_and_gradients_agree(drawn: list[list[list[tuple[list[int], list[int]]]]]) -> None:
    with one_thread():
        _agree(_make(drawn))


def _agree(groups: list[list[Sequence]]) -> None:
    flat = [sequence for group in groups for sequence in group]
    padded = _loss_and_gradients(flat, padded_layout(flat))
    for rows in (groups, [flat], [[sequence] for sequence in flat]):  # a trie a group, one for all, none shared
        packed = _loss_and_gradients(flat, forest_layout(rows))
        torch.testing.assert_close(packed[0], padded[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(packed[1], padded[1], atol=1e-5, rtol=1e-5)
        largest = max(float(reference.abs().max()) for reference in padded[2])
        for ours, reference in zip(packed[2], padded[2], strict=True):
            # Where a gradient is 0 by its formula, it is what rounding leaves of the others.
            scale = float(reference.abs().max().clamp(min=1e-3))
            assert float((ours - reference).abs().max()) <= 1e-5 * scale + 1e-6 + EPSILON * largest
