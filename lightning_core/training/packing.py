"""Prefix tries: every token that sequences share is laid out, and computed, once.

Invariant of a `Trie`: nodes stand in depth-first order, so node `j` is an ancestor of `i` (or `i` itself) exactly
where `j <= i < end[j]`, and a node's position is its depth. Sorting the sequences gives that order without any
bookkeeping of branches: each one adds the tokens after its common prefix with the one before it.

A `Layout` is what one forward pass computes, packed or padded alike: rows of tokens, which positions are scored
against which next token, and where each score belongs in TRL's `(B, T)`. Tries stand end to end in one row, a forest.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from lightning_core.training.dataset import Sequence


@dataclass(frozen=True, eq=False)
class Trie:
    """`n` nodes in depth-first order, and the path of each sequence through them (in the order given)."""

    tokens: np.ndarray  # int32 (n,)
    depth: np.ndarray  # int64 (n,): the token's position
    end: np.ndarray  # int64 (n,): one past the last node of the subtree
    paths: list[np.ndarray]  # a sequence each: the node of each of its tokens, int64

    def __len__(self) -> int:
        return len(self.tokens)


def build_trie(token_ids: Rows[np.ndarray]) -> Trie:
    """Build the trie of some sequences. Equal ones share every node."""
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(token_ids)
    tokens: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    end = np.zeros(sum(len(t) for t in token_ids), np.int64)
    size = 0
    previous_tokens, previous_path = np.empty(0, np.int32), np.empty(0, np.int64)
    for index in sort_by_prefix(token_ids):
        ids = token_ids[index]
        shared = common_prefix(previous_tokens, ids)
        end[previous_path[shared:]] = size
        path = np.concatenate([previous_path[:shared], np.arange(size, size + len(ids) - shared)])
        tokens.append(ids[shared:])
        depths.append(np.arange(shared, len(ids)))
        size += len(ids) - shared
        paths[index] = path
        previous_tokens, previous_path = ids, path
    end[previous_path] = size
    empty = np.empty(0, np.int64)
    return Trie(np.concatenate([empty, *tokens]).astype(np.int32), np.concatenate([empty, *depths]), end[:size], paths)


def sort_by_prefix(token_ids: Rows[np.ndarray]) -> list[int]:
    """Return indices in lexicographic order, where sequences with a common prefix stand side by side."""
    keys = [prefix_key(ids) for ids in token_ids]
    return sorted(range(len(keys)), key=lambda i: (keys[i], i))


def prefix_key(token_ids: np.ndarray) -> bytes:
    """Return bytes that order as the tokens do, one after the other."""
    return token_ids.astype(">u4").tobytes()


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def split_rows(token_ids: Rows[np.ndarray], budget: int) -> list[tuple[list[int], int]]:
    """Cut a group into rows of at most `budget` unique tokens: (indices, unique tokens) of each.

    A row never cuts a sequence, so one that is longer than the budget is a row of its own.
    """
    rows: list[tuple[list[int], int]] = []
    current: list[int] = []
    size = 0
    for index in sort_by_prefix(token_ids):
        ids = token_ids[index]
        # Neighbours share the longest prefix, also with the whole row: so the trie grows by the rest.
        added = len(ids) - (common_prefix(token_ids[current[-1]], ids) if current else 0)
        if current and size + added > budget:
            rows.append((current, size))
            current, size, added = [], 0, len(ids)
        current.append(index)
        size += added
    return [*rows, (current, size)] if current else rows


def unique_tokens(token_ids: Rows[np.ndarray]) -> int:
    return sum(size for _, size in split_rows(token_ids, sum(map(len, token_ids))))


@dataclass(frozen=True)
class Segment:
    """Nodes `start:stop`, each the only child of the one before; `stop:end` descend from them."""

    start: int
    stop: int
    end: int


def segments_of(depth: np.ndarray, end: np.ndarray) -> list[Segment]:
    """Return the segments of a forest whose nodes have these depths and ends, in their order."""
    begins = np.ones(len(depth), bool)
    begins[1:] = (depth[1:] != depth[:-1] + 1) | (end[1:] != end[:-1])
    starts = np.flatnonzero(begins)
    stops = np.append(starts[1:], len(depth))
    return [Segment(*map(int, of)) for of in zip(starts, stops, end[starts], strict=True)]


@dataclass(frozen=True, eq=False)
class Layout:
    """One forward pass: `R` rows of `S` positions, `N` scores, gathered to `(B, T)`."""

    input_ids: torch.Tensor  # int64 (R, S)
    attention_mask: torch.Tensor | None  # int64 (R, S) for padded rows; None where `depth` and `end` say who sees whom
    position_ids: torch.Tensor  # int64 (R, S)
    positions: torch.Tensor  # int64 (N,): into the R * S positions; the hidden state that predicts
    targets: torch.Tensor  # int64 (N,): the token predicted
    gather: torch.Tensor  # int64 (B, T): into the N scores; N where the token is not trained
    depth: np.ndarray | None = None  # of a forest's nodes, as in a Trie
    end: np.ndarray | None = None

    def to(self, device: torch.device) -> Layout:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("depth", "end")}
        return replace(self, **{name: None if t is None else t.to(device) for name, t in tensors.items()})


def forest_layout(rows: Rows[Rows[Sequence]]) -> Layout:
    """Put tries end to end in one row, without padding; `B` counts the sequences of all of them, in order.

    A sequence that has a trie of its own shares nothing: that is `concat`.
    """
    import torch

    tries = [build_trie([s.token_ids for s in sequences]) for sequences in rows]
    scores = _Scores()
    offset = 0
    ends = []
    for sequences, trie in zip(rows, tries, strict=True):
        for sequence, path in zip(sequences, trie.paths, strict=True):
            scores.add(sequence, path + offset)
        ends.append(trie.end + offset)
        offset += len(trie)
    depth = np.concatenate([trie.depth for trie in tries])
    return Layout(
        input_ids=torch.from_numpy(np.concatenate([trie.tokens for trie in tries]).astype(np.int64)).unsqueeze(0),
        attention_mask=None,
        position_ids=torch.from_numpy(depth).unsqueeze(0),
        depth=depth,
        end=np.concatenate(ends),
        **scores.tensors(),
    )


def padded_layout(sequences: Rows[Sequence]) -> Layout:
    """Put one sequence in each row, padded on the right."""
    import torch

    width = max(len(s) for s in sequences)
    input_ids = np.zeros((len(sequences), width), np.int64)
    mask = np.zeros((len(sequences), width), np.int64)
    scores = _Scores()
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence.token_ids
        mask[row, : len(sequence)] = 1
        scores.add(sequence, np.arange(len(sequence)) + row * width)
    return Layout(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.arange(width).expand(len(sequences), -1).clone(),
        **scores.tensors(),
    )


class _Scores:
    """Collects what is scored: one score a trained node, however many sequences pass through it."""

    def __init__(self) -> None:
        self.index: dict[int, int] = {}
        self.positions: list[int] = []
        self.targets: list[int] = []
        self.gathers: list[np.ndarray] = []

    def add(self, sequence: Sequence, path: np.ndarray) -> None:
        gather = np.full(len(sequence) - sequence.prompt_length, -1, np.int64)
        for at in np.flatnonzero(sequence.loss_mask):
            node = int(path[at])
            if node not in self.index:
                self.index[node] = len(self.positions)
                self.positions.append(int(path[at - 1]))
                self.targets.append(int(sequence.token_ids[at]))
            gather[at - sequence.prompt_length] = self.index[node]
        self.gathers.append(gather)

    def tensors(self) -> dict[str, torch.Tensor]:
        import torch

        gather = np.full((len(self.gathers), max(len(g) for g in self.gathers)), -1, np.int64)
        for row, entries in enumerate(self.gathers):
            gather[row, : len(entries)] = entries
        gather[gather < 0] = len(self.positions)
        return {
            "positions": torch.tensor(self.positions, dtype=torch.int64),
            "targets": torch.tensor(self.targets, dtype=torch.int64),
            "gather": torch.from_numpy(gather),
        }
