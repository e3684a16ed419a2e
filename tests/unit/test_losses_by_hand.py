"""Losses whose value a hand computes: those of a policy whose logits are all 0."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_core.training.inputs import Start
from tests.training_data import make_sequence
from tests.unit.test_trl_hook import _trl, accumulate, changed, folder, ours, plan, policy

__all__ = ["_trl", "folder"]  # fixtures

pytestmark = pytest.mark.slow  # it computes losses and gradients


def test_the_loss_of_a_uniform_policy_is_what_a_hand_computes(folder: Path, tmp_path: Path) -> None:
    """All logits 0: every token has probability 1/300. Ratios to what sampled it, clipped at 1.2, by hand."""
    uniform = -math.log(300)
    row = make_sequence("r", "g", [([1, 2], [3, 4]), ([5], [6])])
    arrays = {
        "logprobs": np.array([0, 0, uniform - 0.5, uniform - 0.5, 0, uniform], np.float32),
        "advantages": np.array([0, 0, 2.0, -1.0, 0, 3.0], np.float32),
    }
    row = changed(row, **arrays)
    settings = policy(steps_per_epoch=2, beta=0.1)
    trainer = ours(folder, tmp_path, plan([row], settings), settings)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    trainer.starts = [Start(reference=scores + 0.7) for scores, _ in trainer.score_all()]
    ratio = math.exp(0.5)
    clipped_gain, unclipped_loss, on_policy = -1.2 * 2.0, ratio * 1.0, -3.0
    # TRL weighs the KL estimate by the ratio, since the tokens were drawn by another policy.
    kl = (math.exp(0.7) - 0.7 - 1) * (ratio + ratio + 1) / 3
    expected = (clipped_gain + unclipped_loss + on_policy) / 3 + 0.1 * kl
    assert accumulate(trainer) == pytest.approx(expected, abs=1e-5)
    assert trainer._sums["mismatch"] == pytest.approx(0.5 + 0.5 + 0, abs=1e-5)
    assert trainer._sums["mismatch_kl"] == pytest.approx(2 * (ratio - 1 - 0.5), abs=1e-5)
    lines: list[dict[str, Any]] = []
    trainer.step_plan.on_step = lambda _, line: lines.append(line)
    trainer.state.global_step = 1
    trainer.log({"loss": 0.0, "grad_norm": 1.0})
    by_hand = {
        "clip_ratio": 1 / 3,  # the first: it gains beyond its bound; the second loses, and may
        "ratio": (2 * ratio + 1) / 3,
        "entropy": math.log(300),
        "kl": math.exp(0.7) - 0.7 - 1,
    }
    assert {name: lines[0][name] for name in by_hand} == pytest.approx(by_hand, abs=1e-5)


def test_a_rollout_of_several_rows_weighs_as_much_as_one_of_a_single_row_even_with_kl(
    folder: Path, tmp_path: Path
) -> None:
    """Scaling advantages could not do this: the KL term has none."""
    rows = [make_sequence(f"r{i}", "g", [([1, 2], [3] * n)]) for i, n in enumerate((1, 4, 6))]
    merged = [
        changed(s, rollout_id=r, advantages=0 * s.advantages) for s, r in zip(rows, ("one", "two", "two"), strict=True)
    ]
    settings = policy(loss_type="grpo", beta=1.0)
    trainer = ours(folder, tmp_path, plan(merged, settings), settings)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    # The KL of rollout `one` is k(1), of both rows of `two` k(0): so the mean over rollouts is k(1) / 2.
    (batch,) = [batch for _, batch in trainer._queue]
    of_one = torch.tensor([[float(s.rollout_id == "one")] for s in batch.sequences])
    trainer.starts = [Start(reference=scores + of_one) for scores, _ in trainer.score_all()]
    assert accumulate(trainer) == pytest.approx((math.e - 2) / 2, abs=1e-5)
