"""A run that the alarm stops, and the finetuning on its rollouts, with a canned model in vLLM's place.

The server, rollouts, SQL, the trainer, Prefect, MLflow and the store are real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_core.lake.catalog import connect
from lightning_core.policies.store import PolicyStore
from lightning_core.settings_file import load_settings
from lightning_flows.flows.prefect_api import prefect_api
from tests.e2e import without_vllm
from tests.e2e.test_two_epochs import HERE, ask, mentioning, write_settings

pytestmark = [pytest.mark.extra, pytest.mark.timeout(1200)]


def flow(name: str, settings: Path) -> subprocess.CompletedProcess[str]:
    """The flow in a process of its own; what it returns is the last line of its output."""
    command = [sys.executable, "-m", "tests.e2e.test_stopped_and_finetuned", name, str(settings)]
    return subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=900)


def main(name: str, settings_file: str) -> None:
    settings = load_settings(Path(settings_file), {})
    with prefect_api(settings.home):  # Prefect reads its settings when it is imported
        import lightning_flows.flows.evaluate
        import lightning_flows.flows.finetune
        import lightning_flows.flows.train
        import lightning_flows.flows.train_epoch
        import lightning_flows.tasks.alarm

        for module in (
            lightning_flows.flows.train,
            lightning_flows.flows.train_epoch,
            lightning_flows.flows.evaluate,
            lightning_flows.tasks.alarm,
        ):
            module.__dict__.update(running=without_vllm.running, deploy=without_vllm.deploy)
        if name == "train":
            lightning_flows.flows.train.train(settings)
        else:
            print(json.dumps(lightning_flows.flows.finetune.finetune(settings, evaluate_after=True), default=str))


def test_a_forced_collapse_stops_the_run_and_its_rollouts_can_be_finetuned_on(tmp_path: Path) -> None:
    settings = write_settings(
        tmp_path, epochs=3, evaluation={"every": 1, "success_reward": 0.5}, alarm={"entropy_below": 99.0}
    )
    home = tmp_path / "home"
    stopped = flow("train", settings)
    assert stopped.returncode == 1, stopped.stderr[-3000:]
    assert "ALARM: run 'tiny' is stopped: epoch 0, policy: entropy" in stopped.stderr
    store = PolicyStore(home, "policy")
    assert store.versions() == ["v0000", "v0001"], "the second epoch never began"
    assert store.current() == store.best() == "v0000", "v0001 was never evaluated"
    with connect(home / "lake") as con:
        tagged = con.execute("SELECT count(*) FROM signals WHERE run = 'tiny' AND signal = 'entropy'").fetchone()
    assert tagged == (1,)
    before = ask(home, "SELECT count(*) FROM rollouts")
    again = flow("train", settings)
    assert again.returncode == 1 and "ALARM" in again.stderr
    assert ask(home, "SELECT count(*) FROM rollouts") == before
    assert mentioning(home) == []

    policy = yaml.safe_load(settings.read_text())["policies"][0] | {"algorithm": "sft", "sft": {"best": 2}}
    content = yaml.safe_load(settings.read_text()) | {"run": "examples", "finetune": {"runs": ["tiny"]}, "alarm": {}}
    finetune = tmp_path / "finetune.yaml"
    finetune.write_text(yaml.safe_dump(content | {"policies": [policy]}))
    done = flow("finetune", finetune)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["trained"]["policy"]["version"] == "v0002" and printed["held_out"]["tasks"] == 4
    assert (store.manifest("v0002").run, store.manifest("v0002").parent) == ("examples", "v0000")
    evaluation = store.manifest("v0002").evaluation
    assert evaluation is not None and evaluation.tasks == 4
    assert ask(home, "SELECT DISTINCT policy_version FROM calls WHERE run = 'examples'") == [("v0002",)]


if __name__ == "__main__":
    main(*sys.argv[1:3])
