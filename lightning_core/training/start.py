"""One look at all micro-batches by the weights the epoch begins with, where the settings need what it shows.

Reference, old logprobs, importance ratios and entropies come from the same passes, packed as training is.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from lightning_core.config import TrainingSettings
from lightning_core.training.correction import importance_ratios, informative_tokens
from lightning_core.training.inputs import Start

if TYPE_CHECKING:
    from lightning_core.training.trainer import SequenceTrainer


def look(
    trainer: SequenceTrainer, settings: TrainingSettings, reference: list[torch.Tensor] | None, adapter: bool
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
