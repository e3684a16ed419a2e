"""The Python of the README, as it stands there: a run that trains, its tables, two runs side by side. No vLLM is needed."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import lightning_flows
from tests.docs_blocks import ALL, ROOT
from tests.e2e import without_vllm
from tests.e2e.test_two_epochs import write_settings

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(600)]


def main() -> None:
    """Run the block as a notebook does, in an event loop, and the example of `Run`; then print what its runs have."""
    for flow in ("train", "evaluate"):
        without_vllm.patched(flow)
    (block,) = (each for each in ALL if each.language == "python" and "import lightning_flows" in each.text)
    code = block.text.replace("TASK", "t0")  # all tasks are in two epochs
    made: dict[str, Any] = {}
    cell = compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    asyncio.run(FunctionType(cell, made)())
    run, other = made["run"], made["other"]
    example = "\n".join(line for line in (lightning_flows.Run.__doc__ or "").splitlines() if line.startswith(" " * 8))
    exec(textwrap.dedent(example).replace("settings.yaml", "my_settings.yaml"), {"lightning_flows": lightning_flows})
    rollouts = [each.rollouts.aggregate("epoch, mode, count(*)").order("ALL").fetchall() for each in (run, other)]
    sys.stdout.write("\n" + json.dumps([rollouts, run.rollout("t0")._repr_html_().count("<pre")]))


def test_the_readmes_python_trains_reads_and_trains_two_runs_side_by_side(tmp_path: Path) -> None:
    other = write_settings(tmp_path, run="other", epochs=1, evaluation={"every": 0, "success_reward": 0.5})
    other.rename(tmp_path / "other_settings.yaml")
    mine = write_settings(tmp_path, run="mine", epochs=3, evaluation={"every": 0, "success_reward": 0.5})
    mine.rename(tmp_path / "my_settings.yaml")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path / "prefect")  # flows are imported before a home is known
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", "from tests.e2e.test_runs_side_by_side import main; main()"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    rollouts, shown = json.loads(done.stdout.splitlines()[-1])
    assert rollouts == [[[0, "train", 16], [1, "train", 16], [2, "train", 16]], [[0, "train", 16]]]
    assert shown == 1
    counted = [int(number) for number in re.findall(r"rollouts: (\d+)/16 in", done.stderr)]
    assert (max(counted), counted.count(16)) == (16, 4), "each run counts its own"
