"""When `train` stops before its last epoch."""

from __future__ import annotations

import pytest

from lightning_flows.flows.train import waited_enough


@pytest.mark.parametrize(
    ("shares", "patience", "stops"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4, 0.45], 2, True),
        ([0.5, 0.4, 0.51], 2, False),
        ([0.5, None, 0.4, None, 0.3], 2, True),
        ([0.2, 0.5, 0.4], 2, False),
    ],
)
def test_training_stops_after_so_many_evaluations_without_a_better_one(
    shares: list[float | None], patience: int, stops: bool
) -> None:
    assert waited_enough([{"held_out_right": share} for share in shares], patience) == stops
