"""`lightning-flows why` after a real run with three faults: stale weights, an adapter that nobody asks for, a constant grader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_two_epochs import HERE, ask, flow, write_settings

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(900)]  # tests/unit/test_why.py plants the same


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of two epochs. Its vLLM keeps the base's weights, and the agent asks for one of two adapters."""
    folder = tmp_path_factory.mktemp("faults")
    lora = {"rank": 8, "alpha": 32}
    common = {"model": str(folder / "tiny-llama"), "lora": lora, "training": {"learning_rate": 3e-2}}
    file = write_settings(
        folder,
        policies=[{"name": "policy"} | common, {"name": "critic", "agent_match": "^critic$"} | common],
        evaluation={"every": 0},
    )
    command = [sys.executable, "-m", "tests.e2e.stale_run", "train", str(file)]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return file


def found(settings: Path) -> dict[str, dict[str, Any]]:
    """Rule → the finding, of those that are worse than a note."""
    asked = flow("why", "--home", str(settings.parent / "home"), "--format", "json")
    assert asked.returncode == 0, asked.stderr
    return {one["rule"]: one for one in json.loads(asked.stdout)["findings"] if one["severity"] != "note"}


def test_weights_that_were_not_swapped_and_an_adapter_nobody_asks_for_are_found(settings: Path) -> None:
    findings = found(settings)
    stale = findings["served_version"]
    assert (stale["severity"], stale["policy"], stale["epochs"]) == ("error", "policy", [1]), stale
    assert "from the trainer's: other weights than v0001 sampled these calls" in stale["what"]
    said = ask(settings.parent / "home", "SELECT DISTINCT policy_version FROM calls WHERE epoch = 1")
    assert said == [("v0001",)], "which no label tells"
    unasked = findings["unasked_policy"]
    assert (unasked["severity"], unasked["policy"], unasked["epochs"]) == ("error", "critic", [0, 1]), unasked
    assert "constant_grader" not in findings


def test_a_grader_that_gives_all_the_same_is_found(settings: Path) -> None:
    constant = f"reward.grader={HERE / 'stale_run.py'}:constant"
    graded = flow("regrade", str(settings), "--set", constant)
    assert graded.returncode == 0, graded.stderr[-2000:]
    finding = found(settings)["constant_grader"]
    assert finding["severity"] == "error" and "as in the whole run" in finding["what"], finding
