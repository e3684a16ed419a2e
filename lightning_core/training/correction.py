"""What is worked out once an epoch, from the log-probabilities of the weights it begins with.

Importance correction: the server that sampled and the trainer do not agree to the last digit (kernels, precision, or a
version in between), so each token, or each whole rollout, is weighed by the trainer's probability over the server's,
bounded. Entropy: which tokens are the uncertain ones, over a whole optimizer step and all ranks, however it is cut into
micro-batches. Both, and the KL's reference, come of the same passes, packed as training is.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lightning_core.config import TrainingSettings
from lightning_core.training.dataset import Sequence
from lightning_core.training.inputs import Start
from lightning_core.training.plan import MicroBatch, Step

Queue = list[tuple[Step, MicroBatch | None]]


def look(
    trainer: Any, settings: TrainingSettings, reference: list[torch.Tensor] | None, adapter: bool
) -> tuple[list[Start], dict[int, int], dict[str, float]]:
    """A `Start` of each micro-batch, how many tokens of each step (by id) are informative, and what was measured.

    `reference`: the base model's log-probabilities, where they are needed and the model is no adapter on it.
    """
    queue = trainer._queue
    starts: dict[str, list[Any]] = {}
    counts: dict[int, int] = {}
    measured: dict[str, float] = {}
    correction = settings.importance_correction != "none"
    previous = settings.beta > 0 and settings.kl_reference == "previous"
    quantile = settings.of_trl("top_entropy_quantile")
    if correction or previous or quantile < 1:
        scores = trainer.score_all()
        logps = [of_batch[0] for of_batch in scores]
        if previous:
            reference = logps
        if correction:
            starts["logps"] = logps
            starts["ratio"], measured = importance_ratios(queue, logps, settings)
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
    return (
        [Start(**{name: starts[name][n] for name in names}) for n in range(len(queue))],
        counts,
        measured,
    )


def importance_ratios(
    queue: Queue, logps: list[torch.Tensor], settings: TrainingSettings
) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Ratios `(B, T)` of each micro-batch, 1 where nothing is trained; and `importance_ratio` (the mean over trained
    tokens) with `importance_bounded` (the share of them whose ratio was out of bounds)."""
    level, bound = settings.importance_correction.split("_")
    low = -np.inf if settings.importance_clip_min is None else settings.importance_clip_min
    high = np.inf if settings.importance_clip_max is None else settings.importance_clip_max
    differences = [[trained_part(s, row) - s.logprobs[s.loss_mask] for s, row in _rows(batch, scores)]
                   for (_, batch), scores in zip(queue, logps, strict=True)]  # fmt: skip
    # Of a step each: a group that is trained on again (`max_passes`) has all its rollouts in another step, too.
    numbers = _numbers(queue)
    of_rollout: defaultdict[tuple[int, tuple[str, str]], float] = defaultdict(float)
    if level == "rollout":
        local: defaultdict[tuple[int, tuple[str, str]], float] = defaultdict(float)
        for (step, batch), parts in zip(queue, differences, strict=True):
            for sequence, weight, part in zip(*_weighed(batch), parts, strict=True):
                of_row = float(part.sum(dtype=np.float64)) if weight else 0.0
                local[numbers[id(step)], sequence.rollout] += of_row
        for share in from_all_ranks(dict(local)):
            for rollout, total in share.items():
                of_rollout[rollout] += total
    ratios, total, bounded, count = [], 0.0, 0, 0
    for (step, batch), scores, parts in zip(queue, logps, differences, strict=True):
        ratio = torch.ones_like(scores)
        for row, (sequence, weight, part) in enumerate(zip(*_weighed(batch), parts, strict=True)):
            key = numbers[id(step)], sequence.rollout
            logs = np.full(len(part), of_rollout[key]) if level == "rollout" else part
            raw = np.exp(np.clip(logs, -50, 50))
            kept = np.clip(raw, low, high) if bound == "truncate" else np.where((raw < low) | (raw > high), 0.0, raw)
            places = np.flatnonzero(sequence.loss_mask) - sequence.prompt_length
            ratio[row, places] = torch.from_numpy(kept.astype(np.float32))
            if weight:
                total, count = total + float(kept.sum()), count + len(kept)
                bounded += int(((raw < low) | (raw > high)).sum())
        ratios.append(ratio)
    total, bounded, count = map(sum, zip(*from_all_ranks((total, bounded, count)), strict=True))
    return ratios, {"importance_ratio": total / count, "importance_bounded": bounded / count}


def informative_tokens(
    queue: Queue, entropies: list[torch.Tensor], quantile: float
) -> tuple[list[torch.Tensor], dict[int, int]]:
    """Bool `(B, T)` of each micro-batch: the trained tokens in the top `quantile` of their step by entropy; and how many
    those are of each step (by id) over all ranks."""
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
    """The place of each step (by id), the same on all ranks."""
    return {id(step): n for n, step in enumerate(dict.fromkeys(step for step, _ in queue))}


def trained_mask(batch: MicroBatch | None, like: torch.Tensor) -> torch.Tensor:
    """Bool, of the shape of `like` `(B, T)`: what is trained, nothing in a pass that only keeps ranks even."""
    mask = torch.zeros(like.shape, dtype=torch.bool)
    for row, (sequence, weight) in enumerate(zip(*_weighed(batch), strict=True)):
        mask[row, np.flatnonzero(sequence.loss_mask) - sequence.prompt_length] = weight > 0
    return mask


def trained_part(sequence: Sequence, row: torch.Tensor) -> np.ndarray:
    return row.numpy()[np.flatnonzero(sequence.loss_mask) - sequence.prompt_length]


def from_all_ranks(what: Any) -> list[Any]:
    """`what` of every rank, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [what]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, what)
    return gathered


def _rows(batch: MicroBatch | None, scores: torch.Tensor) -> Iterable[tuple[Sequence, torch.Tensor]]:
    return zip(batch.sequences, scores, strict=True) if batch else ()


def _weighed(batch: MicroBatch | None) -> tuple[list[Sequence], list[float]]:
    return (batch.sequences, batch.weights) if batch else ([], [])
