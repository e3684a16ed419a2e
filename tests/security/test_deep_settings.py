"""Settings that nest thousands deep, or not at all, are an error with file and line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lightning_core.config import SettingsError
from lightning_core.settings_file import make_settings
from lightning_flows.flows.cli import main

DEEP = 5_000
SETTINGS = "agent: {command: 'true'}\ntasks: {train: 'x:y'}\n"
JSON = json.dumps({"agent": {"command": "true"}, "tasks": {"train": "x:y"}}, indent=0)
BY_ALIASES = "a0: &a0 []\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, DEEP))

FILES = {
    "flow lists": (SETTINGS + "run: " + "[" * DEEP + "]" * DEEP + "\n", "3: "),
    "never closed": (SETTINGS + "run: " + "[" * DEEP, "3: "),
    "flow mappings": (SETTINGS + "run: " + "{a: " * DEEP + "1" + "}" * DEEP + "\n", "3: "),
    "block lists": (SETTINGS + "run:\n  " + "- " * DEEP + "1\n", "4: "),
    "JSON": (JSON[:-2] + ',\n"run": ' + '{"a": ' * DEEP + "1" + "}" * DEEP + "}", "8: "),
    "aliases": (SETTINGS + BY_ALIASES, " "),
    "a circle": (SETTINGS + "run: &run [*run]\n", " "),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_nests_deep_is_an_error_with_its_line(tmp_path: Path, name: str) -> None:
    text, line = FILES[name]
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    done = CliRunner().invoke(main, ["settings", str(file)])
    assert done.exit_code == 1, done.exception
    assert done.stderr == f"Error: {file}:{line}nested more than 50 deep\n"


def test_a_value_on_the_command_line_is_read_as_carefully(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(SETTINGS)

    def printed(assignment: str) -> str:
        done = CliRunner().invoke(main, ["settings", str(file), "--set", assignment])
        assert done.exit_code == 1, done.exception
        return done.stderr

    assert printed("run=" + "[" * DEEP + "]" * DEEP) == "Error: --set run:1: nested more than 50 deep\n"
    assert printed("run" + ".a" * DEEP + "=1") == f"Error: {file}: nested more than 50 deep\n"
    assert printed("run=[").startswith("Error: --set run: not valid YAML: ")


def nested(value: Any) -> Any:
    for _ in range(DEEP):
        value = {"a": value}
    return value


def test_what_a_flow_is_given_is_an_error_too() -> None:
    plain = {"agent": {"command": "true"}, "tasks": {"train": "x:y"}}
    for given, overrides in ((plain | {"run": nested(1)}, None), (plain, {"run": nested(1)}), (plain, nested(1))):
        with pytest.raises(SettingsError, match="nested more than 50 deep"):
            make_settings(given, overrides)
    assert make_settings(plain, {"run": "r"}).run == "r"


@pytest.mark.parametrize("text", ["[" * DEEP + "]" * DEEP, '{"upstreams": ' + "[" * DEEP + "]" * DEEP + "}"])
def test_the_gateways_settings_are_read_as_carefully(tmp_path: Path, text: str) -> None:
    command = [sys.executable, "-m", "lightning_core.gateway", "--home", str(tmp_path), "--settings", text]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "argument --settings: `settings`: Invalid JSON: recursion limit exceeded at line 1" in done.stderr
    assert len(done.stderr) < 2_000


def test_a_task_on_the_command_line_is_read_as_carefully() -> None:
    done = CliRunner().invoke(main, ["doctor", "--agent", "true", "--task", "[" * DEEP * 20])
    assert done.exit_code == 1 and done.stderr.startswith("Error: --task is no JSON: "), done.exception
