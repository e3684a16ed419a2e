"""The importance correction, by hand: ratios of tokens, and of rollouts that are several rows in several micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_core.config import TrainingSettings
from lightning_core.training.correction import Queue, bounded, rollout_log_ratios
from lightning_core.training.dataset import Sequence
from lightning_core.training.micro_batches import MicroBatch, Step
from tests.training_data import make_sequence

# Rows of two sampled tokens; the trainer finds them more likely than the server by so much (nats).
DIFFERENCES = {"one.0": (0.5, -0.1), "one.1": (0.2, 0.1), "two.0": (-1.0, 0.3)}


def row(name: str) -> Sequence:
    made = make_sequence(name, "g", [([1, 2], [3, 4])], rollout=name.split(".")[0])
    return replace(made, logprobs=np.array([0, 0, -2, -2], np.float32))


def ratios(*, cut: list[list[str]], idle: bool = False, passes: int = 1, **settings: object) -> list[list[float]]:
    """Ratio of each row's rollout, in the order of `cut`: the rows of each micro-batch, in a step of each pass."""
    batches = [MicroBatch([[row(name)] for name in names], [1.0] * len(names), "none", 4) for names in cut]
    if idle:  # as a rank with less to do repeats a pass
        batches.append(MicroBatch(batches[0].rows, [0.0] * len(batches[0].rows), "none", 4))
    scores = [torch.tensor([np.add(-2.0, DIFFERENCES[s.sequence_id]).tolist() for s in b.sequences]) for b in batches]
    queue: Queue = [(step, b) for step in [Step(batches, 1.0, 0, 0, 0) for _ in range(passes)] for b in batches]
    logs = rollout_log_ratios(queue, scores * passes)
    assert [len(log) for log in logs] == [len(b.sequences) for _, b in queue if b]
    return bounded(torch.cat(logs), TrainingSettings.model_validate(settings))[0].tolist()


@pytest.mark.parametrize("cut", [[["one.0", "one.1", "two.0"]], [["one.0"], ["two.0"], ["one.1"]]])
def test_the_tokens_of_a_rollout_have_one_ratio_whatever_rows_and_micro_batches_it_came_in(
    cut: list[list[str]],
) -> None:
    settings: dict[str, Any] = {"importance_correction": "rollout_truncate", "importance_clip_max": 1.9}
    # exp(0.5 - 0.1 + 0.2 + 0.1) = 2.0 is over the limit, exp(-1.0 + 0.3) = 0.5 is not.
    expected = {"one": 1.9, "two": np.exp(-0.7)}
    for name, of_row in zip([n for names in cut for n in names], ratios(cut=cut, **settings), strict=True):
        assert of_row == pytest.approx([expected[name.split(".")[0]]], rel=1e-5), name


@pytest.mark.parametrize("correction", ["rollout_truncate", "rollout_mask"])
def test_a_rollout_that_is_trained_on_again_has_the_same_ratio(correction: str) -> None:
    settings: dict[str, Any] = {"importance_correction": correction, "importance_clip_max": 3.0}
    cut = [["one.0"], ["two.0"], ["one.1"]]
    assert ratios(cut=cut, passes=2, **settings) == ratios(cut=cut, **settings) * 2


def test_a_pass_that_weighs_nothing_counts_for_no_rollout() -> None:
    settings: dict[str, Any] = {"importance_correction": "rollout_mask", "importance_clip_max": 3.0}
    cut = [["one.0"], ["one.1", "two.0"]]
    found = ratios(cut=cut, **settings)
    assert ratios(cut=cut, idle=True, **settings)[:3] == found
    assert found[0] == pytest.approx([np.exp(0.7)], rel=1e-5)


def test_a_token_out_of_bounds_is_masked_or_held_to_the_bound() -> None:
    bounds: dict[str, Any] = {"importance_clip_max": 1.2, "importance_clip_min": 0.5}
    logs = torch.tensor([DIFFERENCES["one.0"], DIFFERENCES["two.0"]])

    def of(correction: str) -> tuple[torch.Tensor, torch.Tensor]:
        return bounded(logs, TrainingSettings.model_validate(bounds | {"importance_correction": correction}))

    masked, outside = of("token_mask")
    assert masked.tolist() == [pytest.approx([0.0, np.exp(-0.1)], rel=1e-5), [0.0, 0.0]]
    assert outside.tolist() == [[True, False], [True, True]]
    held, _ = of("token_truncate")
    assert held.tolist() == [pytest.approx([1.2, np.exp(-0.1)], rel=1e-5), pytest.approx([0.5, 1.2], rel=1e-5)]
