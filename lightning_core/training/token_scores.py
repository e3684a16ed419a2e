"""What an algorithm makes of each trained token before an epoch's first step: a scoring pass, then SQL.

Both are kept as rows of table `token_scores`, one list a sequence and name, with one entry a trained token.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from lightning_core.algorithms import Algorithm, Tokens
from lightning_core.training.correction import from_all_ranks, trained_part
from lightning_core.training.hardware import is_split
from lightning_core.training.job import Job
from lightning_core.training.micro_batches import MicroBatch
from lightning_core.training.scoring import score, scores_by, spread
from lightning_core.training.token_rows import write_scores
from lightning_core.training.weighing import Scores, run_weighing


def weigh(trainer: Any, job: Job) -> tuple[Scores, dict[str, float]]:
    """Score every sequence of the epoch, and run the algorithm's SQL on that; return all numbers of the tokens and the
    metrics.

    Empty where the algorithm weighs nothing. A training that is resumed gets the same numbers: its model is still the
    one that the epoch began with. Every rank calls this. Raises TrainingError for SQL that does not run, or misses a
    token.
    """
    algorithm: Algorithm = trainer.algorithm
    if algorithm.weigh() is None:
        return {}, {}
    assert job.calls is not None
    scored = _score(trainer, algorithm, job)
    weighed, metrics = run_weighing(algorithm, scored, str(job.sequences), str(job.calls))
    if trainer.accelerator.is_main_process:
        write_scores(job.state, job.policy, scored, weighed)
    return scored | weighed, metrics


def _score(trainer: Any, algorithm: Algorithm, job: Job) -> Scores:
    trainer.step_plan.on_scoring()
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training, device = model.training, trainer.args.device
    model.eval()
    own: Scores = {}
    seen: set[str] = set()
    hidden: list[torch.Tensor] = []
    with torch.no_grad(), trainer.accelerator.autocast():
        for batch in (batch for step in trainer.planned for batch in step.micro_batches):
            if not is_split() and seen.issuperset(s.sequence_id for s in batch.sequences):
                continue  # in a pass before; where weights are split, ranks meet in each pass
            layout = batch.layout().to(device)
            logprobs, entropies = score(model, model, layout, hidden.append)
            tokens = Tokens(
                sequences=batch.sequences,
                logprobs=logprobs,
                entropies=entropies,
                hidden=hidden.pop(),
                spread=partial(spread, gather=layout.gather),
                part=trainer.part,
                other_logprobs=partial(scores_by, layout=layout, policy=job.policy_settings),
            )
            for name, values in ({"logprobs": logprobs} | algorithm.score(tokens)).items():
                _take(own.setdefault(name, {}), batch, values.float().cpu(), seen)
            seen |= {s.sequence_id for s in batch.sequences}
    model.train(was_training)
    scored: Scores = {}
    for share in from_all_ranks(own):
        for name, of_sequences in share.items():
            scored.setdefault(name, {}).update(of_sequences)
    return scored


def _take(into: dict[str, np.ndarray], batch: MicroBatch, values: torch.Tensor, seen: set[str]) -> None:
    for sequence, row in zip(batch.sequences, values, strict=True):
        if sequence.sequence_id not in seen:
            into[sequence.sequence_id] = trained_part(sequence, row)


def put_trained(batch: MicroBatch, of_sequences: dict[str, np.ndarray], target: torch.Tensor) -> None:
    """Write numbers of trained tokens to their places in `target` `(B, T)`."""
    for row, sequence in enumerate(batch.sequences):
        places = np.flatnonzero(sequence.loss_mask) - sequence.prompt_length
        target[row, places] = torch.tensor(of_sequences[sequence.sequence_id])
