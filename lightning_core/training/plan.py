"""From sequences to optimizer steps to micro-batches, with the weights that make uneven micro-batches right.

TRL's reductions average per micro-batch, which is wrong where micro-batches hold unequal numbers of rows or tokens.
So every loss type is one sum over the optimizer step, `sum(weight * token loss) / normalizer`, which is TRL's `dapo`
reduction with explicit weights. With T trained tokens and R rollouts in the step, n_r trained tokens in rollout r:

    dapo, bnpo   weight 1             normalizer T                    token mean
    grpo         weight T / (R n_r)   normalizer T                    each rollout weighs the same
    dr_grpo      weight 1             normalizer R * completion_limit  sum over a constant length

With one row a rollout and one micro-batch these are TRL's own numbers.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_core.training.dataset import Sequence
from lightning_core.training.packing import Layout, padded_layout, split_rows, tree_layout

logger = logging.getLogger(__name__)

Packing = Literal["none", "tree"]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One forward and backward pass. `rows` are tries (`tree`) or hold one sequence each (`none`)."""

    rows: list[list[Sequence]]
    weights: list[float]  # of each sequence's tokens, in the order of `sequences`
    packing: Packing
    unique_tokens: int  # what is computed, padding not counted

    @property
    def sequences(self) -> list[Sequence]:
        return [sequence for row in self.rows for sequence in row]

    @property
    def tokens(self) -> int:
        return sum(len(s) for s in self.sequences)

    def layout(self) -> Layout:
        return tree_layout(self.rows) if self.packing == "tree" else padded_layout(self.sequences)


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step: what this rank computes, and what it is divided by over all ranks."""

    micro_batches: list[MicroBatch]
    normalizer: float
    tokens: int  # over all ranks, as is everything below
    unique_tokens: int
    trained_tokens: int


def plan_steps(
    sequences: Rows[Sequence],
    *,
    steps: int,
    seed: int,
    packing: Packing,
    budget: int,
    loss_type: str,
    completion_limit: int,
    rank: int = 0,
    ranks: int = 1,
    rows_together: bool = False,
) -> list[Step]:
    """Spread whole groups over `steps` optimizer steps and cut each in micro-batches of at most `budget` tokens.

    The order of groups is drawn from `seed`, and depends on the ids alone, not on the order of `sequences`. With
    fewer groups than steps there are fewer steps. Tries stay one a micro-batch unless `rows_together` (on a CPU a
    second row makes a pass no faster, only larger). Ranks get equally many micro-batches of a step.
    """
    groups: defaultdict[str, list[Sequence]] = defaultdict(list)
    for sequence in sorted(sequences, key=lambda s: s.sequence_id):
        groups[sequence.group_id].append(sequence)
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    count = min(steps, len(names))
    if count < steps:
        logger.warning("%d groups for %d optimizer steps: %d steps", len(names), steps, count)
    planned = []
    for share in np.array_split(order, count):
        chosen = [groups[names[i]] for i in share]
        weights, normalizer = _weigh([s for group in chosen for s in group], loss_type, completion_limit)
        rows = _rows(chosen, packing, budget)
        batches = [
            MicroBatch(
                rows=[row for row, _ in batch],
                weights=[weights[s.rollout] for row, _ in batch for s in row],
                packing=packing,
                unique_tokens=sum(size for _, size in batch),
            )
            for batch in _gather_rows(rows, budget, packing == "none" or rows_together)
        ]
        planned.append(
            Step(
                micro_batches=_share(batches, rank, ranks),
                normalizer=normalizer,
                tokens=sum(b.tokens for b in batches),
                unique_tokens=sum(b.unique_tokens for b in batches),
                trained_tokens=sum(s.trained_tokens for b in batches for s in b.sequences),
            )
        )
    return planned


def _weigh(
    sequences: list[Sequence], loss_type: str, completion_limit: int
) -> tuple[dict[tuple[str, str], float], float]:
    trained: Counter[tuple[str, str]] = Counter()
    for sequence in sequences:
        trained[sequence.rollout] += sequence.trained_tokens
    total, rollouts = trained.total(), len(trained)
    if loss_type == "grpo":
        return {rollout: total / (rollouts * n) for rollout, n in trained.items()}, float(total)
    if loss_type == "dr_grpo":
        return dict.fromkeys(trained, 1.0), float(rollouts * completion_limit)
    if loss_type in ("dapo", "bnpo"):
        return dict.fromkeys(trained, 1.0), float(total)
    raise ValueError(f"loss_type {loss_type!r}: known are grpo, dr_grpo, dapo, bnpo")


def _rows(groups: list[list[Sequence]], packing: Packing, budget: int) -> list[tuple[list[Sequence], int]]:
    """Rows with their sizes: tries of a group, or single sequences, longest first so that equal lengths meet."""
    if packing == "tree":
        return [
            ([group[i] for i in indices], size)
            for group in groups
            for indices, size in split_rows([s.token_ids for s in group], budget)
        ]
    return sorted((([s], len(s)) for group in groups for s in group), key=lambda row: -row[1])


def _gather_rows(
    rows: list[tuple[list[Sequence], int]], budget: int, together: bool
) -> list[list[tuple[list[Sequence], int]]]:
    """Rows that go through the model at once: as many as fit the budget with padding to the widest."""
    batches: list[list[tuple[list[Sequence], int]]] = []
    for row in rows:
        if together and batches and max(row[1], *(size for _, size in batches[-1])) * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _share(batches: list[MicroBatch], rank: int, ranks: int) -> list[MicroBatch]:
    """This rank's micro-batches: the largest first, each to the rank with least to do.

    Ranks meet in collectives in every pass, so all get equally many: a rank with less to do repeats a small pass
    that weighs nothing.
    """
    if ranks == 1:
        return batches
    shares: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for batch in sorted(batches, key=lambda b: -b.unique_tokens):
        least = load.index(min(load))
        load[least] += batch.unique_tokens
        shares[least].append(batch)
    small = min(batches, key=lambda b: b.unique_tokens)
    idle = MicroBatch(small.rows, [0.0] * len(small.sequences), small.packing, small.unique_tokens)
    return shares[rank] + [idle] * (max(map(len, shares)) - len(shares[rank]))


def line_up(steps: Rows[Step]) -> list[tuple[Step, MicroBatch | None]]:
    """All micro-batches in order, with None so that every step has equally many (transformers counts on it).

    A shorter step begins with its Nones: the last pass of a step is the one after which the optimizer moves.
    """
    width = max(len(step.micro_batches) for step in steps)
    queue: list[tuple[Step, MicroBatch | None]] = []
    for step in steps:
        queue += [(step, None)] * (width - len(step.micro_batches))
        queue += [(step, batch) for batch in step.micro_batches]
    return queue
