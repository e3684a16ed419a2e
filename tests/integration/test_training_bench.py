"""The bench of training runs, and both sides have one gradient. What its figures are is not tested."""

from __future__ import annotations

import pytest

from tests.integration.test_bench import figures


@pytest.mark.extra  # minutes on a busy machine, for the sake of a bench
def test_the_training_bench_prints_what_it_promises() -> None:
    small = ["--drawn", "--groups", "1", "--rounds", "1", "--layers", "1", "--long-layers", "1", "--history", "60"]
    found = figures("bench.training", "calculator", "rows", "long_merged", "start", *small)
    assert set(found) == {
        "train_step_calculator",
        "train_step_long_merged",
        "train_data_overhead",
        "train_rows_overhead",
        "train_start_s",
    }
    for name in ("train_step_calculator", "train_step_long_merged"):
        assert found[name]["gradient_difference"] < 1e-4
        assert 0 < found[name]["unique_share"] < 1
