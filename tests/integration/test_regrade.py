"""`lightning-flows regrade`: rewards anew over what was collected, with the real server and Prefect, without a model."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import duckdb
import pytest
import yaml

from lightning_core.agents.runner import Runner, run_rollout
from lightning_core.epoch.decoding import decode_spool
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import attempt_of, plan_training
from lightning_core.epoch.services import gateway_running
from lightning_core.epoch.task_file import load_tasks
from lightning_core.lake.lake import Lake
from lightning_core.settings_file import load_settings

ROOT = Path(__file__).parents[2]
AGENT = """
def tasks():
    return [{"id": str(n), "number": n} for n in (1, 2)]

def run(task):
    return task["number"]

def the_number(task, output, spans):
    return float(output)

def its_square(task, output, spans):
    return float(output) ** 2

def only_even(task, output, spans):
    return 1.0 if output % 2 == 0 else float("nan")
"""


pytestmark = pytest.mark.usefixtures("with_prefect")


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a run with one collected epoch: two tasks, two rollouts each, no reward yet."""
    folder = tmp_path_factory.mktemp("regrade")
    agent = folder / "agent.py"
    agent.write_text(AGENT)
    file = folder / "settings.yaml"
    content = {
        "run": "graded",
        "home": str(folder / "home"),
        "agent": {"callable": f"{agent}:run", "preload": []},
        "tasks": {"train": f"{agent}:tasks"},
        "rollout": {"tasks_per_epoch": 2, "group_size": 2},
        "reward": {"grader": f"{agent}:the_number"},
    }
    file.write_text(yaml.safe_dump(content))
    settings = load_settings(file)
    planned = plan_training(Run(settings), load_tasks(settings.tasks.train, "tasks.train"), 0)
    lake = Lake(settings.home)
    epoch = lake.open_epoch(settings.run, 0, "train", {"policy": "v0000"})
    epoch.planned = [rollout.rollout_id for rollout in planned]
    with gateway_running(Run(settings)) as server, Runner(settings.agent, model="policy") as runner:
        for rollout in planned:
            spec = partial(attempt_of, Epoch(settings, epoch), rollout, gateway=server)
            assert run_rollout(runner, spec, settings.rollout.retries).status == "ok"
        epoch.sealed_offset = decode_spool(Lake(settings.home), None).decoded_offset
    lake.manifests.put_epoch(epoch)
    return file


def regrade(settings_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lightning_flows.flows.cli", "regrade", str(settings_file), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def rewards(settings_file: Path) -> list[tuple[float | None, str | None]]:
    lake = Lake(load_settings(settings_file).home)
    epoch = lake.manifests.epoch("graded", 0)
    assert epoch is not None
    path = str(lake.path(epoch.tables["rollout_rewards"]))
    return duckdb.execute("SELECT reward, left_out FROM read_parquet(?) ORDER BY rollout_id", [path]).fetchall()


def test_rewards_follow_the_grader_and_no_rollout_runs_again(settings_file: Path) -> None:
    first = regrade(settings_file)
    assert first.returncode == 0, first.stderr
    assert sorted(reward or 0.0 for reward, _ in rewards(settings_file)) == [1.0, 1.0, 2.0, 2.0]
    agent = settings_file.parent / "agent.py"
    again = regrade(settings_file, "--set", f"reward.grader={agent}:its_square")
    assert again.returncode == 0, again.stderr
    assert sorted(reward or 0.0 for reward, _ in rewards(settings_file)) == [1.0, 1.0, 4.0, 4.0]
    assert "1.500" in again.stdout and "2.500" in again.stdout  # mean reward before and after
    with Lake(load_settings(settings_file).home).connect() as con:
        assert con.execute("SELECT count(*) FROM spans WHERE op = 'rollout'").fetchall() == [(4,)]

    nothing = regrade(settings_file, "--set", f"reward.grader={agent}:its_square")
    assert "0 train 0 0 2.500 2.500" in " ".join(nothing.stdout.split())  # this grader has graded all of them
    assert sorted(reward or 0.0 for reward, _ in rewards(settings_file)) == [1.0, 1.0, 4.0, 4.0]

    broken = regrade(settings_file, "--set", f"reward.grader={agent}:only_even")
    assert broken.returncode == 0, broken.stderr
    assert sorted(reason or "" for _, reason in rewards(settings_file)) == ["", "", "no_reward", "no_reward"]


def test_a_run_without_a_collected_epoch_says_so(settings_file: Path) -> None:
    wrong = regrade(settings_file, "--epoch", "7")
    assert wrong.returncode == 1
    assert "has not rolled out epoch 7 yet; rolled out are: epoch 0" in wrong.stderr
