"""A run that the alarm stops, and the finetuning of what it collected: real vLLM, Prefect and training, on a tiny Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_core.lake.catalog import connect
from lightning_core.policies.store import PolicyStore
from tests.e2e.test_two_epochs import ask, flow, mentioning, write_settings

pytestmark = [pytest.mark.extra, pytest.mark.timeout(1200)]


def test_a_forced_collapse_stops_the_run_and_its_rollouts_can_be_finetuned_on(tmp_path: Path) -> None:
    settings = write_settings(
        tmp_path, epochs=3, evaluation={"every": 1, "success_reward": 0.5}, alarm={"entropy_below": 99.0}
    )
    home = tmp_path / "home"
    stopped = flow("train", str(settings))
    assert stopped.returncode == 1, stopped.stderr[-3000:]
    assert "ALARM: run 'tiny' is stopped: epoch 0, policy: entropy" in stopped.stderr
    store = PolicyStore(home, "policy")
    assert store.versions() == ["v0000", "v0001"], "the second epoch never began"
    assert store.current() == store.best() == "v0000", "v0001 was never evaluated"
    with connect(home / "lake") as con:
        tagged = con.execute("SELECT count(*) FROM signals WHERE run = 'tiny' AND signal = 'entropy'").fetchone()
    assert tagged == (1,)
    before = ask(home, "SELECT count(*) FROM rollouts")
    again = flow("train", str(settings))
    assert again.returncode == 1 and "ALARM" in again.stderr
    assert ask(home, "SELECT count(*) FROM rollouts") == before
    assert mentioning(home) == []

    policy = yaml.safe_load(settings.read_text())["policies"][0] | {"algorithm": "sft", "sft": {"best": 2}}
    content = yaml.safe_load(settings.read_text()) | {"run": "examples", "finetune": {"runs": ["tiny"]}, "alarm": {}}
    finetune = tmp_path / "finetune.yaml"
    finetune.write_text(yaml.safe_dump(content | {"policies": [policy]}))
    done = flow("finetune", str(finetune), "--evaluate")
    assert done.returncode == 0, done.stderr[-3000:]
    told = yaml.safe_load(done.stdout)
    assert told["trained"]["policy"]["version"] == "v0002" and told["held_out"]["tasks"] == 4
    assert (store.manifest("v0002").run, store.manifest("v0002").parent) == ("examples", "v0000")
    evaluation = store.manifest("v0002").evaluation
    assert evaluation is not None and evaluation.tasks == 4
    assert ask(home, "SELECT DISTINCT policy_version FROM calls WHERE run = 'examples'") == [("v0002",)]
