"""Every flow is a command that says what it does, and every deployment is of a flow that there is."""

from __future__ import annotations

import errno
import importlib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lightning_flows.flows.cli import main
from tests.deployed import deployments

ROOT = Path(__file__).parents[2]
FLOWS = ("train-epoch", "train", "evaluate", "ingest", "finetune", "roll-out", "learn", "regrade")


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_is_a_command_with_help(name: str) -> None:
    if name not in main.commands:
        pytest.fail(f"there is no command {name}")
    shown = CliRunner().invoke(main, [name, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output


def test_every_deployment_names_a_flow_and_parameters_that_it_takes() -> None:
    for deployment in deployments():
        module, _, name = deployment["entrypoint"].partition(":")
        flow = getattr(importlib.import_module(module), name)
        flow.validate_parameters(deployment["parameters"])
        assert deployment["concurrency_limit"], "none runs twice at a time"


@pytest.mark.parametrize("attribute", ["no-value", "=x"])
def test_an_attribute_to_learn_by_is_a_pair(tmp_path: Path, attribute: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"agent": {"command": "true"}, "tasks": {"train": "t.jsonl"}}))
    done = CliRunner().invoke(main, ["learn", str(file), "--attribute", attribute])
    assert done.exit_code != 0
    assert "--attribute: write each as KEY=VALUE" in done.output


def test_a_full_disk_is_one_line_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(home: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "lake"))

    monkeypatch.setattr("lightning_flows.flows.command.prefect_api", full)
    file, tasks = tmp_path / "settings.yaml", tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": "1"}')
    file.write_text(
        yaml.safe_dump({"home": str(tmp_path), "agent": {"command": "true"}, "tasks": {"train": str(tasks)}})
    )
    done = CliRunner().invoke(main, ["train", str(file)])
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert done.output.splitlines()[-1].startswith(f"Error: {tmp_path / 'lake'}: the disk is full; make room")


def test_a_policy_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file, home = tmp_path / "settings.yaml", tmp_path / "home"
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": "1"}')
    file.write_text(yaml.safe_dump({"home": str(home), "agent": {"command": "true"}, "tasks": {"train": str(tasks)}}))
    done = CliRunner().invoke(main, ["train", str(file), "--only", "solver"])
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == "Error: there is no policy 'solver' to train; the settings have policy"
    assert not home.exists(), "nor Prefect's server, which keeps its record there"


def test_a_stage_that_is_none_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["train-epoch", "settings.yaml", "--from", "sql"])
    assert done.exit_code != 0
    assert "'rollouts', 'rewards', 'sequences', 'train', 'record'" in done.output
