"""The sequences of a training job: read from Parquet and checked before anything heavy is imported.

Invariant of a `Sequence`: all arrays have one length; at least one token is trained; no trained token comes before
`prompt_length`; trained tokens have finite logprobs ≤ 0 and finite advantages. Left out here: everything that makes
a sequence, which is SQL's work.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_core.training.errors import TrainingDataError

logger = logging.getLogger(__name__)

_TEXT = ("sequence_id", "rollout_id", "attempt_id", "group_id", "policy")
_LISTS = {"token_ids": np.int32, "loss_mask": np.uint8, "logprobs": np.float32, "advantages": np.float32}
_REMEDY = {
    "logprobs": "the server's numbers are broken: leave the rollout out, and look at the server",
    "advantages": "look at its group's rewards, and at the estimator (`policies[].advantages`) that made it of them",
}
_LOGPROB_SLACK = 1e-3  # bf16 servers round a certain token's logprob to slightly above 0


@dataclass(frozen=True, eq=False)
class Sequence:
    """One training row: `n` tokens of one rollout, arrays of shape `(n,)`."""

    sequence_id: str
    rollout_id: str
    attempt_id: str
    group_id: str
    token_ids: np.ndarray  # int32, prompt and all that follows
    prompt_length: int  # tokens before the first sampled one
    loss_mask: np.ndarray  # bool, True where the token was sampled and is trained
    logprobs: np.ndarray  # float32, of sampling; 0 where not trained
    advantages: np.ndarray  # float32; 0 where not trained
    tokenized: bool = False  # its trained tokens are of a text, not sampled: their logprobs say nothing

    def __len__(self) -> int:
        return len(self.token_ids)

    @cached_property
    def trained_tokens(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def rollout(self) -> tuple[str, str]:
        """Return the ids of what owns the sequence, (rollout, attempt): a rollout can have become several sequences."""
        return self.rollout_id, self.attempt_id


@dataclass(frozen=True)
class Sequences:
    """What is trained on, and how many rows were left out by reason (`too_long`, `nothing_trained`)."""

    rows: list[Sequence]
    left_out: dict[str, int]


def read_sequences(path: Path, *, policy: str, vocabulary: int, max_tokens: int) -> Sequences:
    """Read and check a job's sequences; those longer than `max_tokens` are left out and counted.

    Raises TrainingDataError, naming the sequence and its rollout, for anything that would train on wrong numbers.
    """
    table = _read_table(path)
    if table.num_rows == 0:
        raise TrainingDataError(
            f"{path}: no sequences; nothing of this epoch can be trained on: the table `exclusions` says why"
        )
    lists = {name: _split(table.column(name), dtype, name, path) for name, dtype in _LISTS.items()}
    rows: list[Sequence] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for number, named in enumerate(table.select([*_TEXT, "prompt_length", "tokenized"]).to_pylist()):
        where = f"{path}: sequence {named['sequence_id']!r} of rollout {named['rollout_id']!r}"
        missing = [name for name, value in named.items() if value is None]
        if missing:
            raise TrainingDataError(f"{where}: `{missing[0]}` is null")
        if named["policy"] != policy:
            raise TrainingDataError(f"{where}: belongs to policy {named['policy']!r}, this job trains {policy!r}")
        if named["sequence_id"] in seen:
            raise TrainingDataError(f"{where}: the id occurs twice; every sampled token is trained exactly once")
        seen.add(named["sequence_id"])
        del named["policy"]
        arrays = {name: of_rows[number] for name, of_rows in lists.items()}
        row = Sequence(**named, **arrays | {"loss_mask": arrays["loss_mask"] != 0})
        _check(row, vocabulary, where)
        if row.trained_tokens == 0:
            left_out["nothing_trained"] += 1
        elif len(row) > max_tokens:
            left_out["too_long"] += 1
        else:
            rows.append(row)
    if left_out:
        logger.warning("left out of training: %s of %d sequences", dict(left_out), table.num_rows)
    if not rows:
        raise TrainingDataError(
            f"{path}: nothing to train: all {table.num_rows} sequences were left out ({dict(left_out)}); "
            f"`too_long` means more than {max_tokens} tokens (`training.max_sequence_tokens`, or the model's positions)"
        )
    return Sequences(rows, dict(left_out))


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise TrainingDataError(f"{path}: no such file of sequences") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise TrainingDataError(f"{path}: not a readable Parquet file: {error}") from None
    missing = [name for name in (*_TEXT, *_LISTS, "prompt_length", "tokenized") if name not in table.column_names]
    if missing:
        raise TrainingDataError(f"{path}: columns missing: {', '.join(missing)}")
    return table


def _split(column: pa.ChunkedArray, dtype: Any, name: str, path: Path) -> list[np.ndarray]:
    """Split a list column into one array a row. They are views of one buffer: a large epoch is held once."""
    whole = pa.concat_arrays(column.chunks)
    if not (pa.types.is_list(whole.type) or pa.types.is_large_list(whole.type)):
        raise TrainingDataError(f"{path}: column `{name}` is {whole.type}, expected a list")
    if whole.null_count:
        raise TrainingDataError(f"{path}: `{name}` is null in row {whole.is_null().index(True)}")
    offsets, values = whole.offsets.to_numpy(), whole.values
    if values.null_count:
        row = int(np.searchsorted(offsets, values.is_null().index(True).as_py(), "right")) - 1
        raise TrainingDataError(f"{path}: `{name}` holds a null in row {row}")
    numbers = values.to_numpy(zero_copy_only=False)
    if np.issubdtype(dtype, np.integer) and numbers.size:
        limits = np.iinfo(dtype)
        if numbers.min() < limits.min or numbers.max() > limits.max:
            raise TrainingDataError(f"{path}: `{name}` holds {numbers.min()}..{numbers.max()}, past {np.dtype(dtype)}")
    numbers = numbers.astype(dtype, copy=False)
    return [numbers[start:end] for start, end in pairwise(offsets)]


def _check(row: Sequence, vocabulary: int, where: str) -> None:
    n = len(row.token_ids)
    for name in ("loss_mask", "logprobs", "advantages"):
        if len(getattr(row, name)) != n:
            raise TrainingDataError(f"{where}: `{name}` has {len(getattr(row, name))} entries, `token_ids` has {n}")
    if n == 0:
        raise TrainingDataError(f"{where}: `token_ids` is empty")
    low, high = int(row.token_ids.min()), int(row.token_ids.max())
    if low < 0 or high >= vocabulary:
        raise TrainingDataError(
            f"{where}: token id {low if low < 0 else high} is outside the model's vocabulary (0..{vocabulary - 1}); "
            "was it sampled by another model? Train that one (`policies[].model`)"
        )
    if not 0 < row.prompt_length <= n:
        raise TrainingDataError(f"{where}: `prompt_length` is {row.prompt_length}, expected 1..{n}")
    first = int(row.loss_mask.argmax())
    if row.loss_mask.any() and first < row.prompt_length:
        raise TrainingDataError(
            f"{where}: token {first} is marked as trained but lies in the prompt of {row.prompt_length}"
        )
    trained = row.loss_mask
    for name in ("logprobs", "advantages"):
        wrong = np.flatnonzero(trained & ~np.isfinite(getattr(row, name)))
        if len(wrong):
            found = f"`{name}` is {getattr(row, name)[wrong[0]]} at token {wrong[0]}"
            raise TrainingDataError(f"{where}: {found}; {_REMEDY[name]}")
    if trained.any() and row.logprobs[trained].max() > _LOGPROB_SLACK:
        raise TrainingDataError(
            f"{where}: `logprobs` holds {row.logprobs[trained].max():.4g}; a log-probability is ≤ 0"
        )
