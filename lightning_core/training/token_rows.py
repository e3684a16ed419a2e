"""What each optimizer step did with each token that it trained: the rows of table `training_rows`.

A file a step, so that a training that was killed and resumed has those of all its steps in the end. Left out: SFT,
whose loss has neither ratio nor clipping. And what the algorithm made of each token before the first step: those of `token_scores`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_core.files import make_folder, put_in_place
from lightning_core.training.checkpoint import ROWS
from lightning_core.training.micro_batches import MicroBatch
from lightning_core.training.weighing import Scores

_SCORES = "scores.parquet"
_LISTS = ("logprobs", "entropies", "ratios", "loss_weights", "clipped")


class TokenRows:
    """Holds the rows of the step under way and writes them when it is done; of several ranks the first writes those of all."""

    def __init__(self, state: Path, policy: str) -> None:
        self._folder, self._policy = state / ROWS, policy
        self._held: list[tuple[list[str], list[int], np.ndarray]] = []  # sequence ids, tokens of each, (5, all tokens)

    def add(self, batch: MicroBatch, logps: Any, entropies: Any, inputs: dict[str, Any], trainer: Any) -> None:
        """Add the tokens of a micro-batch, each tensor `(B, T)`, before its loss: ratio and clipping as TRL computes
        them."""
        import torch

        weights = inputs["tool_mask"]
        trained = weights > 0
        log_ratio = logps - inputs.get("old_per_token_logps", logps)
        if trainer.importance_sampling_level == "sequence":
            log_ratio = (log_ratio * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=1.0)
        ratio, advantages = torch.exp(log_ratio).expand_as(logps), inputs["advantages"]
        clipped = torch.zeros_like(trained)
        if trainer.loss_type == "dapo":  # as are all that clip on both sides (trl_bridge.py)
            clipped = (ratio < 1 - trainer.epsilon_low) & (advantages < 0)
            clipped |= (ratio > 1 + trainer.epsilon_high) & (advantages > 0)
        elif trainer.loss_type == "cispo":
            clipped = (ratio > trainer.epsilon_high) & (advantages > 0)
        counts = weights / inputs["num_items_in_batch"]
        for factor in ("importance", "informative"):
            if factor in inputs:
                counts = counts * inputs[factor]
        values = torch.stack([logps, entropies, ratio, counts, clipped.float()])[:, trained]  # row after row, in order
        lengths = trained.sum(-1).tolist()
        self._held.append(([s.sequence_id for s in batch.sequences], lengths, values.float().cpu().numpy()))

    def write(self, step: int) -> None:
        """End step `step`, from 1. Every rank calls this."""
        from lightning_core.training.correction import from_all_ranks

        held = [micro_batch for of_rank in from_all_ranks(self._held) for micro_batch in of_rank]
        self._held = []
        if not (held and _writes()):
            return
        names = [name for ids, lengths, _ in held for name, n in zip(ids, lengths, strict=True) if n]
        sizes = [n for _, lengths, _ in held for n in lengths if n]
        values = np.concatenate([of_batch for _, _, of_batch in held], axis=1)
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        kinds = [pa.bool_() if name == "clipped" else pa.float32() for name in _LISTS]
        lists = [
            pa.ListArray.from_arrays(offsets, pa.array(row if kind == pa.float32() else row > 0, kind))
            for kind, row in zip(kinds, values, strict=True)
        ]
        owners = [pa.array([self._policy] * len(names)), pa.array([step] * len(names), pa.int32()), pa.array(names)]
        table = pa.table([*owners, *lists], ["policy", "step", "sequence_id", *_LISTS])
        _put(table.sort_by("sequence_id"), self._folder / f"step-{step:04d}.parquet")


def forget_rows(state: Path, after: int) -> None:
    """Remove what a killed try wrote of the steps behind step `after`, and its scores: those are made again, or are another
    algorithm's."""
    if _writes():
        later = [file for step, file in _files(state) if step > after]
        for file in (*later, state / ROWS / _SCORES):
            file.unlink(missing_ok=True)


def training_rows(state: Path) -> pa.Table | None:
    """Return the rows of all steps of the job in a state folder; None where its training writes none."""
    files = [file for _, file in _files(state)]
    return pa.concat_tables([pq.read_table(file) for file in files]) if files else None


def write_scores(state: Path, policy: str, scored: Scores, weighed: Scores) -> None:
    """Write `score_rows` beside those of the steps."""
    _put(score_rows(policy, scored, weighed), state / ROWS / _SCORES)


def score_rows(policy: str, scored: Scores, weighed: Scores) -> pa.Table:
    """Return the rows of table `token_scores`: what the algorithm's `score` and its SQL made of each trained token."""
    rows = [
        (policy, name, of is weighed, sequence, values)
        for of in (scored, weighed)
        for name, of_sequences in sorted(of.items())
        for sequence, values in sorted(of_sequences.items())
    ]
    kinds = [pa.string(), pa.string(), pa.bool_(), pa.string(), pa.list_(pa.float32())]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    return pa.table(columns, ["policy", "name", "by_sql", "sequence_id", "numbers"])


def token_scores(state: Path) -> pa.Table | None:
    """Return the rows of table `token_scores` of the job in a state folder; None where its algorithm weighs nothing."""
    file = state / ROWS / _SCORES
    return pq.read_table(file) if file.exists() else None


def _put(table: pa.Table, file: Path) -> None:
    make_folder(file.parent)
    beside = file.with_suffix(".tmp")
    pq.write_table(table, beside, use_dictionary=False, compression="none")
    put_in_place(beside, file)


def _files(state: Path) -> list[tuple[int, Path]]:
    """Return the number and the file of each step, in the order of the steps."""
    files = sorted((state / ROWS).glob("step-*.parquet"))
    return [(int(file.stem.removeprefix("step-")), file) for file in files]


def _writes() -> bool:
    """Return whether this is the rank that writes."""
    return int(os.environ.get("RANK", "0")) == 0
