"""Runs of two homes that train side by side in one process, and what is done in it afterwards. No vLLM is needed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightning_flows
from tests.e2e import without_vllm
from tests.e2e.test_two_epochs import write_settings

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(600)]


async def main(*files: str) -> None:
    for flow in ("train", "evaluate"):
        without_vllm.patched(flow)
    a, b = (lightning_flows.Run(file) for file in files)
    trained = await asyncio.gather(asyncio.to_thread(a.train, epochs=1), asyncio.to_thread(b.train, 2))
    evaluated = a.evaluate()  # in the loop's own thread, as a cell of a notebook
    said: list[Any] = [[row["epoch"] for row in rows] for rows in trained]
    rollouts = [run.rollouts.aggregate("epoch, mode, count(*)").order("ALL").fetchall() for run in (a, b)]
    sys.stdout.write(json.dumps([said, evaluated["epoch"], evaluated["tasks"], rollouts]))


def test_two_runs_train_side_by_side_and_the_process_goes_on_with_them(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        files.append(write_settings(folder, run=name, evaluation={"every": 0, "success_reward": 0.5}))
    program = (
        "import sys, asyncio; from tests.e2e import test_runs_side_by_side as t; asyncio.run(t.main(*sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *map(str, files)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    alone["PREFECT_HOME"] = str(tmp_path / "prefect")  # flows are imported here before a home is known
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=alone, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [[0], [0, 1]],
        1,
        4,
        [[[0, "train", 16], [1, "evaluate", 4]], [[0, "train", 16], [1, "train", 16]]],
    ]
    counted = [int(number) for number in re.findall(r"rollouts: (\d+)/16 in", done.stderr)]
    assert (max(counted), counted.count(16)) == (16, 3), "each run counts its own"
