"""Sequences for the trainer's tests: random groups that share prompts, branch, and merge several turns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_core.config import PolicySettings
from lightning_core.training.dataset import Sequence, read_sequences
from lightning_core.training.job import Job


def make_sequence(
    name: str, group: str, turns: list[tuple[list[int], list[int]]], seed: int = 0, rollout: str | None = None
) -> Sequence:
    """One sequence of `turns` (context tokens, sampled tokens); advantages and logprobs are drawn from `seed`.

    `rollout`: the one it is a part of; a rollout of its own where that is left out.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    ids = [token for context, sampled in turns for token in (*context, *sampled)]
    mask = np.array([on for context, sampled in turns for on in (*[0] * len(context), *[1] * len(sampled))], bool)
    logprobs = np.where(mask, -rng.uniform(3.0, 7.0, len(ids)), 0.0)
    advantages = np.where(mask, rng.normal(), 0.0)
    return Sequence(
        sequence_id=name,
        rollout_id=rollout or name,
        attempt_id="a",
        group_id=group,
        token_ids=np.array(ids, np.int32),
        prompt_length=len(turns[0][0]),
        loss_mask=mask,
        logprobs=logprobs.astype(np.float32),
        advantages=advantages.astype(np.float32),
    )


def random_group(
    group: str, size: int, rng: np.random.Generator, vocabulary: int = 300, prompt: int = 20, a_rollout: int = 1
) -> list[Sequence]:
    """`size` sequences of one prompt and one or two turns of 1 to 12 sampled tokens from few token ids (so they branch).

    So many that follow each other (`a_rollout`) are of one rollout.
    """

    def draw(low: int, high: int) -> list[int]:
        return (rng.integers(0, 4, int(rng.integers(low, high))) + vocabulary - 5).tolist()

    shared = rng.integers(0, vocabulary, prompt).tolist()
    sequences = []
    for number in range(size):
        turns = [(shared, draw(1, 12))]
        if rng.random() < 0.5:
            turns.append((rng.integers(0, vocabulary, 4).tolist(), draw(1, 12)))
        sequences.append(make_sequence(f"{group}.{number}", group, turns, rollout=f"{group}.{number // a_rollout}"))
    return sequences


def write_parquet(sequences: list[Sequence], path: Path, owner: str = "policy", **replaced: list[Any]) -> Path:
    """The sequences as the lake writes them; `replaced` puts other values into whole columns."""
    columns: dict[str, Any] = {
        "sequence_id": pa.array([s.sequence_id for s in sequences], pa.string()),
        "rollout_id": pa.array([s.rollout_id for s in sequences], pa.string()),
        "attempt_id": pa.array([s.attempt_id for s in sequences], pa.string()),
        "group_id": pa.array([s.group_id for s in sequences], pa.string()),
        "policy": pa.array([owner] * len(sequences), pa.string()),
        "call_ids": pa.array([["call"]] * len(sequences), pa.list_(pa.string())),
        "token_ids": pa.array([s.token_ids.tolist() for s in sequences], pa.list_(pa.int32())),
        "prompt_length": pa.array([s.prompt_length for s in sequences], pa.int32()),
        "loss_mask": pa.array([s.loss_mask.astype(int).tolist() for s in sequences], pa.list_(pa.uint8())),
        "logprobs": pa.array([s.logprobs.tolist() for s in sequences], pa.list_(pa.float32())),
        "tokenized": pa.array([s.tokenized for s in sequences], pa.bool_()),
        "advantages": pa.array([s.advantages.tolist() for s in sequences], pa.list_(pa.float32())),
    }
    for name, values in replaced.items():
        columns[name] = pa.array(values, columns[name].type)
    pq.write_table(pa.table(columns), path)
    return path


def with_critic(job: Job, algorithm: str = "ppo", options: dict[str, Any] | None = None) -> Job:
    """The job by an algorithm that scores tokens: each sequence is one call, rewarded with 1 where its first token is an even one."""
    rows = read_sequences(job.sequences, policy=job.policy, vocabulary=300, max_tokens=512).rows
    calls = {
        "policy": [job.policy] * len(rows),
        "sequence_id": [s.sequence_id for s in rows],
        "place": [1] * len(rows),
        "attempt": [s.rollout_id for s in rows],
        "call_id": list(range(len(rows))),
        "choice": [0] * len(rows),
        "tokens": [s.trained_tokens for s in rows],
        "next_call": pa.array([None] * len(rows), pa.int64()),
        "discount": [0.0] * len(rows),
        "others": [0.0] * len(rows),
        "reward": [float(s.token_ids[s.prompt_length] % 2 == 0) for s in rows],
    }
    file = job.progress.with_name("calls.parquet")
    pq.write_table(pa.table(calls), file)
    settings = job.policy_settings.model_dump(exclude_defaults=True) | {
        "algorithm": algorithm,
        "options": options or {},
    }
    return job.model_copy(update={"policy_settings": PolicySettings.model_validate(settings), "calls": file})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The trainer imported, and torch on one thread: on a busy machine two threads wait for each other at every small op."""
    from lightning_core.training.job import import_trainer

    import_trainer()
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
