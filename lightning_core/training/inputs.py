"""What TRL's loss gets of one micro-batch: tokens, weights, advantages and logprobs as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lightning_core.training.micro_batches import MicroBatch


@dataclass(frozen=True)
class Start:
    """What the weights the epoch begins with say of one micro-batch, each `(B, T)` where it is asked for."""

    logps: torch.Tensor | None = None  # log-probabilities of the tokens
    log_ratio: torch.Tensor | None = (
        None  # (B, 1), importance correction: of the trainer's to the server's, of a rollout
    )
    informative: torch.Tensor | None = None  # bool: tokens of high entropy
    reference: torch.Tensor | None = None  # log-probabilities by the KL's reference


def materialise(
    batch: MicroBatch, normalizer: float, use_sampling_logps: bool, start: Start | None = None
) -> dict[str, Any]:
    """Return TRL's inputs of one micro-batch: `B` sequences, prompts padded left to `P`, the rest padded right to `T`.

    `tool_mask` (B, T) carries the weights of the trained tokens, 0 elsewhere; `layout` is what is computed. The
    ratio is to `start.logps`; with `use_sampling_logps` to the logprobs of sampling; else to those of the same pass.
    """
    sequences = batch.sequences
    prompt = max(s.prompt_length for s in sequences)
    rest = max(len(s) - s.prompt_length for s in sequences)
    b = len(sequences)
    ids = {"prompt_ids": np.zeros((b, prompt), np.int64), "prompt_mask": np.zeros((b, prompt), np.int64)}
    ids |= {"completion_ids": np.zeros((b, rest), np.int64), "completion_mask": np.zeros((b, rest), np.int64)}
    floats = {name: np.zeros((b, rest), np.float32) for name in ("tool_mask", "advantages", "sampling_per_token_logps")}
    for row, (sequence, weight) in enumerate(zip(sequences, batch.weights, strict=True)):
        p, n = sequence.prompt_length, len(sequence) - sequence.prompt_length
        ids["prompt_ids"][row, prompt - p :] = sequence.token_ids[:p]
        ids["prompt_mask"][row, prompt - p :] = 1
        ids["completion_ids"][row, :n] = sequence.token_ids[p:]
        ids["completion_mask"][row, :n] = 1
        trained = sequence.loss_mask[p:]
        floats["tool_mask"][row, :n] = np.where(trained, weight, 0.0)
        floats["advantages"][row, :n] = np.where(trained, sequence.advantages[p:], 0.0)
        floats["sampling_per_token_logps"][row, :n] = np.where(trained, sequence.logprobs[p:], 0.0)
    inputs: dict[str, Any] = {name: torch.from_numpy(array) for name, array in (ids | floats).items()}
    inputs["num_items_in_batch"] = torch.tensor(normalizer)
    inputs["layout"] = batch.layout()
    start = start or Start()
    if use_sampling_logps:
        inputs["old_per_token_logps"] = inputs["sampling_per_token_logps"]
    of_start = {
        "old_per_token_logps": start.logps,
        "log_ratio": start.log_ratio,
        "ref_per_token_logps": start.reference,
        "informative": start.informative,
    }
    return inputs | {name: values for name, values in of_start.items() if values is not None}
