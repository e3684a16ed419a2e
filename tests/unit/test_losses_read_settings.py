"""A setting is read by a loss, or refused with it: none is taken and then changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lightning_core.training.dataset import Sequence
from tests.unit.test_trl_hook import LOSSES, _trl, accumulate, folder, near, ours, plan, policy, sequences

__all__ = ["_trl", "folder", "near", "sequences"]  # fixtures

pytestmark = pytest.mark.slow  # so many losses

KL = {"beta": 0.4}
CORRECTED = {"importance_correction": "token_truncate", "importance_clip_max": 1.5}
# What a setting is a part of, and another value of it. (`importance_sampling_level` is refused by all that do not read it.)
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"epsilon": 0.05}),
    ({}, {"epsilon_high": 0.9}),
    ({}, {"delta": 1.21}),
    ({}, {"sapo_temperature_pos": 3.0}),
    ({}, {"sapo_temperature_neg": 3.0}),
    ({}, {"vespo_k_pos": 0.3}),
    ({}, {"vespo_lambda_pos": 0.3}),
    ({}, {"vespo_k_neg": 0.3}),
    ({}, {"vespo_lambda_neg": 0.3}),
    ({}, {"off_policy_mask_threshold": 0.05}),
    ({}, KL),
    (KL, {"use_bias_correction_kl": False}),
    ({}, {"entropy_coef": 0.5}),
    ({}, {"top_entropy_quantile": 0.3}),
    ({}, CORRECTED),
    ({}, {"importance_correction": "rollout_mask", "importance_clip_max": 1.1}),
    (CORRECTED, {"importance_clip_max": 1.1}),
    (CORRECTED, {"importance_clip_min": 0.9}),
]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_setting_changes_the_gradient_or_is_refused(
    folder: Path, tmp_path: Path, near: list[Sequence], loss: str, steps: int
) -> None:
    kind = {"loss_type": loss, "steps_per_epoch": steps}
    if loss == "gspo":
        kind |= {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    known: dict[str, torch.Tensor] = {}

    def gradient(**training: Any) -> torch.Tensor:
        if str(training) not in known:
            settings = policy(**kind | training)
            trainer = ours(folder, tmp_path, plan(near, settings, budget=2000), settings)
            accumulate(trainer)
            known[str(training)] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        return known[str(training)]

    def difference(before: dict[str, Any], after: dict[str, Any]) -> float:
        return float((gradient(**before) - gradient(**after)).abs().max())

    silent = []
    for part, change in CHANGES:
        try:
            policy(**kind | part | change)
        except ValidationError:
            continue
        if difference(part, part | change) < 1e-6:
            silent.append(change)
    if loss not in ("dr_grpo", "luspo"):
        by_token, by_rollout = {"normalization": "token"}, {"normalization": "rollout"}
        if difference(by_token, by_rollout) < 1e-6:
            silent.append(by_rollout)
    assert silent == []
