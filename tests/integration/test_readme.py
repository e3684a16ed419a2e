"""The agent of the README, as printed, by `lightning-flows`: its settings, its grader, and both ways to run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_core.epoch.task_file import load_tasks
from lightning_core.loading import load_callable
from tests.docs_blocks import write_readme

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader has written the files of the README."""
    folder = tmp_path_factory.mktemp("reader")
    write_readme(folder)
    return folder


def cli(reader: Path, *arguments: str) -> str:
    """What the command prints, with the environment activated. It has to end well."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = [str(BIN / "lightning-flows"), *arguments]
    done = subprocess.run(
        command, cwd=reader, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_its_settings_are_complete_and_no_task_is_both_trained_and_held_out(
    reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = yaml.safe_load(cli(reader, "settings", "my_settings.yaml"))
    monkeypatch.chdir(reader)
    train, held_out = (load_tasks(shown["tasks"][part], f"tasks.{part}") for part in ("train", "evaluate"))
    assert len(train) >= shown["rollout"]["tasks_per_epoch"]
    assert not {task.content["question"] for task in train} & {task.content["question"] for task in held_out}
    grade = load_callable(shown["reward"]["grader"], "reward.grader")
    task = train[0].content
    assert [grade(task, said, []) for said in (f"It is {task['answer']}.", "I do not know.")] == [1.0, 0.0]


def test_the_doctor_finds_that_it_trains_as_a_callable_and_as_a_command(reader: Path) -> None:
    settings = yaml.safe_load((reader / "my_settings.yaml").read_text())
    settings["agent"] = {"command": "python my_agent.py"}
    (reader / "by_command.yaml").write_text(yaml.safe_dump(settings))
    for arguments in (["my_settings.yaml"], ["by_command.yaml"], ["--agent", "python my_agent.py"]):
        printed = cli(reader, "doctor", *arguments)
        assert "1 calls would be trained on" in printed
        assert printed.splitlines()[-1] == "it can be trained"
        graded = "--agent" not in arguments
        assert ("ok      rewards: 1 rewards" in printed) is graded, printed
