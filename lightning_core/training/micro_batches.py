"""From sequences to optimizer steps to micro-batches, with the weights that make uneven micro-batches right.

TRL's reductions average per micro-batch, which is wrong where micro-batches hold unequal numbers of rows or tokens.
So every loss type is one sum over the optimizer step, `sum(weight * token loss) / normalizer`, with explicit weights.
With T trained tokens and R rollouts in the step, n_r trained tokens in rollout r:

    dapo, bnpo, cispo, vespo   weight 1             normalizer T                     token mean
    grpo, sapo                 weight T / (R n_r)   normalizer T                     each rollout weighs the same
    dr_grpo                    weight 1             normalizer R * completion_limit  sum over a constant length
    luspo                      weight 1             normalizer R                     sum over each rollout

`normalization` puts the first or second line in place of the loss's own. With one row a rollout and one micro-batch
these are TRL's own numbers.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_core.config import PolicySettings
from lightning_core.training.dataset import Sequence
from lightning_core.training.memory import ON_CPUS
from lightning_core.training.packing import (
    Layout,
    forest_layout,
    padded_layout,
    prefix_key,
    sort_by_prefix,
    split_rows,
    unique_tokens,
)

logger = logging.getLogger(__name__)

Packing = Literal["none", "concat", "tree"]

_ROLLOUT_MEAN = ("grpo", "sapo")
_TOKEN_MEAN = ("dapo", "bnpo", "cispo", "vespo")


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One forward and backward pass. `rows` are tries (`tree`) or hold one sequence each (`concat`, `none`)."""

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
        return padded_layout(self.sequences) if self.packing == "none" else forest_layout(self.rows)


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step: what this rank computes, and what it is divided by over all ranks."""

    micro_batches: list[MicroBatch]
    normalizer: float
    tokens: int  # over all ranks, as is everything below
    unique_tokens: int
    trained_tokens: int


def plan_epoch(policy: PolicySettings, sequences: Rows[Sequence], packing: Packing, seed: int) -> list[Step]:
    """Plan the optimizer steps of an epoch, as the policy's settings and this rank's place ask for them."""
    settings = policy.training
    return plan_steps(
        sequences,
        steps=settings.steps_per_epoch,
        min_groups=settings.min_groups_per_step,
        max_passes=settings.max_passes,
        seed=seed,
        packing=packing,
        budget=settings.tokens_per_micro_batch or ON_CPUS,
        loss_type=settings.loss_type,
        completion_limit=policy.sampling.max_tokens or settings.max_sequence_tokens,
        normalization=settings.normalization,
        rank=int(os.environ.get("RANK", "0")),
        ranks=int(os.environ.get("WORLD_SIZE", "1")),
    )


def plan_steps(
    sequences: Rows[Sequence],
    *,
    steps: int,
    seed: int,
    packing: Packing,
    budget: int,
    loss_type: str,
    completion_limit: int,
    min_groups: int = 1,
    max_passes: int = 1,
    normalization: str | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> list[Step]:
    """Divide whole groups among `steps` optimizer steps and cut each in micro-batches of at most `budget` tokens.

    The order of groups is drawn from `seed`, and depends on the ids alone, not on the order of `sequences`. Where steps
    would have fewer than `min_groups` groups, the groups are gone through again, each pass in an order of its own,
    `max_passes` times at most: the last pass ends with the last step, and what is still missing are fewer steps. Ranks
    get equally many micro-batches of a step.
    """
    groups: defaultdict[str, list[Sequence]] = defaultdict(list)
    for sequence in sorted(sequences, key=lambda s: s.sequence_id):
        groups[sequence.group_id].append(sequence)
    names = sorted(groups)
    rng = np.random.default_rng(seed)
    of_pass = min(steps, max(1, len(names) // min_groups))
    passes = min(max_passes, math.ceil(steps / of_pass))
    shares = [share for _ in range(passes) for share in np.array_split(rng.permutation(len(names)), of_pass)][:steps]
    if of_pass < steps:
        logger.info("%d groups for %d optimizer steps: %d steps, %d passes", len(names), steps, len(shares), passes)
    planned = []
    for share in shares:
        chosen = [groups[names[i]] for i in share]
        weights, normalizer = _weigh([s for group in chosen for s in group], loss_type, completion_limit, normalization)
        batches = [
            MicroBatch(
                rows=rows,
                weights=[weights[s.rollout] for row in rows for s in row],
                packing=packing,
                unique_tokens=size,
            )
            for rows, size in _batches(chosen, packing, budget, ranks)
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
    sequences: list[Sequence], loss_type: str, completion_limit: int, normalization: str | None
) -> tuple[dict[tuple[str, str], float], float]:
    trained: Counter[tuple[str, str]] = Counter()
    for sequence in sequences:
        trained[sequence.rollout] += sequence.trained_tokens
    total, rollouts = float(trained.total()), len(trained)
    weights, normalizer = dict.fromkeys(trained, 1.0), total
    if loss_type == "dr_grpo":
        normalizer = float(rollouts * completion_limit)
    elif loss_type == "luspo":
        normalizer = float(rollouts)
    elif loss_type not in (*_ROLLOUT_MEAN, *_TOKEN_MEAN):
        raise ValueError(f"loss_type {loss_type!r}: known are dr_grpo, luspo, {', '.join(_ROLLOUT_MEAN + _TOKEN_MEAN)}")
    elif (normalization or ("rollout" if loss_type in _ROLLOUT_MEAN else "token")) == "rollout":
        weights = {rollout: total / (rollouts * n) for rollout, n in trained.items()}
    # TRL divides by a row's weights, or by 1 where they are less. Its `sapo` must always find less, so that the division
    # goes; a ratio over sequences must find more, so that it is a mean. Only the proportions mean anything.
    rows = [weights[s.rollout] * s.trained_tokens for s in sequences]
    scale = 1 / max(rows) if loss_type == "sapo" else max(1.0, 1 / min(rows))
    return {rollout: weight * scale for rollout, weight in weights.items()}, normalizer * scale


def _batches(
    groups: list[list[Sequence]], packing: Packing, budget: int, ranks: int
) -> list[tuple[list[list[Sequence]], int]]:
    """Return rows that go through the model at once, and the tokens computed there (padding not counted)."""
    if packing == "tree":
        return [([row], size) for row, size in _tries(groups, budget, ranks)]
    # The longest first, so that equal lengths meet.
    rows = sorted((s for group in groups for s in group), key=lambda s: -len(s))
    batches: list[list[Sequence]] = []
    for sequence in rows:
        last = batches[-1] if batches else []
        computed = len(last[0]) * (len(last) + 1) if last and packing == "none" else sum(map(len, [*last, sequence]))
        if last and computed <= budget:
            last.append(sequence)
        else:
            batches.append([sequence])
    return [([[s] for s in batch], sum(map(len, batch))) for batch in batches]


def _tries(groups: list[list[Sequence]], budget: int, ranks: int) -> list[tuple[list[Sequence], int]]:
    """Put groups in the order of their tokens, several to a trie where they fit: what they share is computed once too.

    A group that fits is not cut. Where ranks would stay without work, groups are not put together.
    """
    ordered = [groups[i] for i in sort_by_prefix([min((s.token_ids for s in g), key=prefix_key) for g in groups])]
    sizes = [unique_tokens([s.token_ids for s in group]) for group in ordered]
    together = min(budget, sum(sizes) // ranks)
    tries: list[tuple[list[Sequence], int]] = []
    for group, size in zip(ordered, sizes, strict=True):
        if size > budget:
            rows = split_rows([s.token_ids for s in group], budget)
            tries += [([group[i] for i in indices], n) for indices, n in rows]
            continue
        joined = [*tries[-1][0], *group] if tries else group
        both = unique_tokens([s.token_ids for s in joined]) if tries else size
        if tries and both <= together:
            tries[-1] = joined, both
        else:
            tries.append((group, size))
    return tries


def _share(batches: list[MicroBatch], rank: int, ranks: int) -> list[MicroBatch]:
    """Return this rank's micro-batches: the largest first, each to the rank with least to do.

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


def line_up(steps: Rows[Step], first: int = 0) -> list[tuple[Step, MicroBatch | None]]:
    """Return all micro-batches from step `first` on, in order, with None so that every step of the epoch has equally
    many (transformers counts on it).

    A shorter step begins with its Nones: the last pass of a step is the one after which the optimizer moves.
    """
    width = max(len(step.micro_batches) for step in steps)
    queue: list[tuple[Step, MicroBatch | None]] = []
    for step in steps[first:]:
        queue += [(step, None)] * (width - len(step.micro_batches))
        queue += [(step, batch) for batch in step.micro_batches]
    return queue
