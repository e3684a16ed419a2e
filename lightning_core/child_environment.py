"""The environment of the processes that this one starts to run code of lightning-flows."""

from __future__ import annotations

import os
from pathlib import Path

# For those that compute on CPUs. Threads that wait for others spin for microseconds only, then sleep; by default they spin for
# so long that, where others want the cores too, vLLM's throughput falls to a sixth (15 instead of 87 tokens/s, two cores at
# load 7), and a training takes 80 s instead of 56 (one busy process beside it). Alone they take the same.
SHORT_SPINS = {"GOMP_SPINCOUNT": "5000"}


def child_environment() -> dict[str, str]:
    """This process's own, with the package importable from wherever it was started."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
