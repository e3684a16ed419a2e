"""Flow `evaluate`: the run's own evaluation, and one beside it of other tasks. No vLLM is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_core.lake.manifest import Manifests
from lightning_core.policies.store import PolicyStore
from tests.e2e import without_vllm
from tests.e2e.test_two_epochs import write_settings

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(600)]


def run() -> None:
    from lightning_flows.flows.prefect_api import prefect_api

    with prefect_api(Path(sys.argv[1]).parent / "home"):
        without_vllm.main("evaluate", sys.argv[1])


def test_any_version_is_evaluated_on_any_tasks_and_the_runs_own_record_stays(tmp_path: Path) -> None:
    file = write_settings(tmp_path, evaluation={"success_reward": 0.5, "rollouts_per_task": 4, "limit": 192})
    home = tmp_path / "home"
    program = [sys.executable, "-c", "from tests.e2e.test_evaluate import run; run()", str(file)]
    done = subprocess.run(program, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 of 4 held-out tasks (evaluation.limit: 192)" in done.stderr, done.stderr[-3000:]
    own, beside = json.loads(done.stdout.splitlines()[-1])
    assert (own["epoch"], own["tasks"], own["rollouts"]) == (0, 4, 16)
    assert sorted(own["pass_at"]) == ["1", "2", "4"]
    assert own["interval"][0] <= own["right"] <= own["interval"][1]
    assert own["pass_at"]["1"] == pytest.approx(own["right"])
    assert (beside["tasks"], beside["rollouts"], beside["versions"]) == (8, 32, {"policy": "v0000"})
    assert beside["run"].startswith("tiny-on-")
    manifests = Manifests(home / "lake")
    assert [m.mode for m in manifests.epochs("tiny")] == ["evaluate"]
    assert [m.mode for m in manifests.epochs(beside["run"])] == ["evaluate"]
    store = PolicyStore(home, "policy")
    noted = store.manifest("v0000").evaluation
    assert noted is not None and (noted.run, noted.tasks) == ("tiny", 4), "what stands beside the run is not noted"
    assert (store.best(), store.current()) == ("v0000", "v0000")
