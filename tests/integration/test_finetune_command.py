"""`lightning-flows finetune`: recorded spans to a new version, with the real trainer and Prefect, without a server or vLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_core.lake.catalog import connect
from lightning_core.policies.store import PolicyStore
from lightning_core.settings_file import load_settings
from tests.lake_maker import Attempt, derived
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]


@pytest.mark.extra  # its parts have tests of their own; a minute
def test_the_best_collected_rollouts_become_a_version_with_its_lineage(tmp_path: Path) -> None:
    home = tmp_path / "home"
    rows = []
    for n, reward in enumerate([0.0, 1.0, 0.5, 1.0]):
        attempt = Attempt(f"r.{n}", group=f"g{n % 2}")
        attempt.root()
        attempt.call([70, 71, 72], [80 + n, 90])
        attempt.reward(reward)
        rows += attempt.rows
    lake, epoch = derived(home, rows, planned=[f"r.{n}" for n in range(4)])
    epoch.versions = {"policy": "v0000"}
    lake.manifests.put_epoch(epoch)
    model = make_tiny_llama(tmp_path / "tiny")
    content = {
        "run": "examples",
        "home": str(home),
        "agent": {"command": "true"},
        "tasks": {"train": str(tmp_path / "none.jsonl")},
        "finetune": {"runs": ["run"]},
        "policies": [
            {"model": str(model), "algorithm": "sft", "sft": {"min_reward": 0.5, "passes": 2}}
            | {"training": {"learning_rate": 1e-3, "max_mismatch": None}}  # random weights did not sample them
        ],
    }
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(content))

    done = subprocess.run(
        [sys.executable, "-m", "lightning_flows.flows.cli", "finetune", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = yaml.safe_load(done.stdout)
    assert (printed["epoch"], printed["rollouts"], printed["held_out"]) == (0, 4, None)
    trained = printed["trained"]["policy"]
    assert trained["version"] == "v0001" and trained["metrics"]["steps"] == 2 and trained["metrics"]["sequences"] == 2

    manifest = PolicyStore(home, "policy").manifest("v0001")
    assert (manifest.run, manifest.epoch, manifest.parent) == ("examples", 0, "v0000")
    assert manifest.sequences_digest is not None
    PolicyStore(home, "policy").verify("v0001")
    with connect(lake.root) as con:
        reasons = con.execute("SELECT reason, count(*) FROM exclusions WHERE run = 'examples' GROUP BY ALL").fetchall()
        assert dict(reasons) == {"below_min_reward": 1, "not_best_of_group": 1}
        rollouts = con.execute("SELECT rollout_id FROM sequences WHERE run = 'examples' ORDER BY ALL").fetchall()
        assert rollouts == [("r.1",), ("r.2",)]
    next_epoch = lake.manifests.next_epoch(load_settings(file).run)
    assert next_epoch == 1, "it is an epoch of its run, and the next one goes on from its version"

    wrong = subprocess.run(
        [
            sys.executable,
            "-m",
            "lightning_flows.flows.cli",
            "finetune",
            str(file),
            "--set",
            "policies=[{name: policy}]",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 1 and "set `algorithm: sft`" in wrong.stderr
