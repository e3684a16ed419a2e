"""What the log-probabilities of the weights that an epoch begins with decide.

Importance correction: the server that sampled and the trainer do not agree to the last digit (kernels, precision, or a
version in between), so each token, or each whole rollout, is weighed by the trainer's probability over the server's,
bounded. Entropy: which tokens are the uncertain ones, over a whole optimizer step and all ranks, however it is cut into
micro-batches. The epoch's first step has these log-probabilities in its own pass. Passes of their own, packed as training
is, are for the steps after it, and for what has to be known before a step: a whole rollout's ratio, the KL's reference,
the entropy.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from lightning_core.config import TrainingSettings
from lightning_core.training.dataset import Sequence
from lightning_core.training.inputs import Start
from lightning_core.training.micro_batches import MicroBatch, Step

Queue = list[tuple[Step, MicroBatch | None]]


def look(trainer: Any, reference: list[torch.Tensor] | None, adapter: bool) -> tuple[list[Start], dict[int, int]]:
    """Return a `Start` for each micro-batch, and how many tokens of each step (by id) are informative.

    `reference`: the base model's log-probabilities, where they are needed and the model is no adapter on it.
    """
    settings, queue, first = trainer.settings, trainer._queue, trainer.planned[0]
    starts: dict[str, list[Any]] = {}
    counts: dict[int, int] = {}
    of_rollouts = str(settings.importance_correction).startswith("rollout")
    previous = settings.beta > 0 and settings.kl_reference == "previous"
    quantile = settings.of_trl("top_entropy_quantile")
    before = of_rollouts or previous or quantile < 1
    later = settings.corrected and queue[-1][0] is not first
    if before or later:
        scores = trainer.score_all(None if before else first)
        logps = [of_batch[0] for of_batch in scores]
        if previous:
            reference = logps
        if later:
            starts["logps"] = [
                None if step is first else of_batch for (step, _), of_batch in zip(queue, logps, strict=True)
            ]
        if of_rollouts:
            starts["log_ratio"] = rollout_log_ratios(queue, logps)
        if quantile < 1:
            entropies = [of_batch[1] for of_batch in scores]
            starts["informative"], counts = informative_tokens(queue, entropies, quantile)
    if settings.beta > 0 and reference is None:
        model = trainer.model
        with model.disable_adapter() if adapter else contextlib.nullcontext():
            reference = [of_batch[0] for of_batch in trainer.score_all()]
    if reference is not None:
        starts["reference"] = reference
    names = list(starts)
    return [Start(**{name: starts[name][n] for name in names}) for n in range(len(queue))], counts


def rollout_log_ratios(queue: Queue, logps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return `(B, 1)` for each micro-batch: by how much (nats) each row's whole rollout is more likely to the trainer
    than to the server."""
    # Of a step each: a group that is trained on again (`max_passes`) has all its rollouts in another step, too.
    numbers = _numbers(queue)
    local: defaultdict[tuple[int, tuple[str, str]], float] = defaultdict(float)
    for (step, batch), scores in zip(queue, logps, strict=True):
        for sequence, weight, row in zip(*_weighed(batch), scores, strict=True):
            if weight:
                difference = trained_part(sequence, row) - sequence.logprobs[sequence.loss_mask]
                local[numbers[id(step)], sequence.rollout] += float(difference.sum(dtype=np.float64))
    of_rollout: defaultdict[tuple[int, tuple[str, str]], float] = defaultdict(float)
    for share in from_all_ranks(dict(local)):
        for rollout, total in share.items():
            of_rollout[rollout] += total
    return [
        torch.tensor([[of_rollout[numbers[id(step)], sequence.rollout]] for sequence in _weighed(batch)[0]])
        for step, batch in queue
    ]


def bounded(log_ratio: torch.Tensor, settings: TrainingSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the importance ratio within its bounds, and a bool tensor, true where it was out of them."""
    low, high = settings.importance_clip_min or 0.0, settings.importance_clip_max or math.inf
    ratio = torch.exp(log_ratio.clamp(-50, 50))
    outside = (ratio < low) | (ratio > high)
    if str(settings.importance_correction).endswith("truncate"):
        return ratio.clamp(low, high), outside
    return ratio.masked_fill(outside, 0.0), outside


def informative_tokens(
    queue: Queue, entropies: list[torch.Tensor], quantile: float
) -> tuple[list[torch.Tensor], dict[int, int]]:
    """Return bool `(B, T)` for each micro-batch, the trained tokens in the top `quantile` of their step by entropy, and
    how many those are of each step (by id) over all ranks."""
    values: defaultdict[int, list[torch.Tensor]] = defaultdict(list)
    numbers = _numbers(queue)
    trained = [trained_mask(batch, e) for (_, batch), e in zip(queue, entropies, strict=True)]
    for (step, _), mask, entropy in zip(queue, trained, entropies, strict=True):
        values[numbers[id(step)]].append(entropy[mask])
    shares = from_all_ranks({number: torch.cat(v).float().numpy() for number, v in values.items()})
    thresholds, counts = {}, {}
    for number in values:
        of_step = np.concatenate([share[number] for share in shares])
        thresholds[number] = np.float32(np.quantile(of_step, 1 - quantile))
        counts[number] = int((of_step >= thresholds[number]).sum())
    masks = [
        mask & (entropy >= float(thresholds[numbers[id(step)]]))
        for (step, _), mask, entropy in zip(queue, trained, entropies, strict=True)
    ]
    return masks, {key: counts[number] for key, number in numbers.items()}


def _numbers(queue: Queue) -> dict[int, int]:
    """Return the place of each step (by id), the same on all ranks."""
    return {id(step): n for n, step in enumerate(dict.fromkeys(step for step, _ in queue))}


def trained_mask(batch: MicroBatch | None, like: torch.Tensor) -> torch.Tensor:
    """Return what is trained, bool of the shape of `like` `(B, T)`: nothing in a pass that only keeps ranks even."""
    mask = torch.zeros(like.shape, dtype=torch.bool)
    for row, (sequence, weight) in enumerate(zip(*_weighed(batch), strict=True)):
        mask[row, np.flatnonzero(sequence.loss_mask) - sequence.prompt_length] = weight > 0
    return mask


def trained_part(sequence: Sequence, row: torch.Tensor) -> np.ndarray:
    return row.numpy()[np.flatnonzero(sequence.loss_mask) - sequence.prompt_length]


def from_all_ranks(what: Any) -> list[Any]:
    """Return `what` of every rank, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [what]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, what)
    return gathered


def _weighed(batch: MicroBatch | None) -> tuple[list[Sequence], list[float]]:
    return (batch.sequences, batch.weights) if batch else ([], [])
