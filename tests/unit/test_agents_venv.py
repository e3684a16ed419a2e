"""`agent.python`: which interpreter an agent runs with, and environments that are made once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightning_core.agents.environment import base_environment
from lightning_core.agents.venv import digest, interpreter
from lightning_core.config import AgentSettings, SettingsError


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    file = tmp_path / "agent" / "requirements.txt"
    file.parent.mkdir()
    file.write_text("# nothing beside Python\n")
    return file


def test_requirements_make_an_environment_once(requirements: Path, tmp_path: Path) -> None:
    environments = tmp_path / "environments"
    with ThreadPoolExecutor(4) as threads:
        found = set(threads.map(lambda _: interpreter(requirements, environments), range(4)))
    (python,) = found
    prefix = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert Path(prefix.stdout.strip()) == environments / digest(requirements)
    made = (environments / digest(requirements) / "ready").stat().st_mtime_ns
    assert interpreter(requirements, environments) == python
    assert (environments / digest(requirements) / "ready").stat().st_mtime_ns == made


def test_one_that_was_killed_while_it_installed_is_made_anew(requirements: Path, tmp_path: Path) -> None:
    half = tmp_path / "environments" / digest(requirements)
    half.mkdir(parents=True)
    (half / "rest").write_text("of a former try")
    assert interpreter(requirements, tmp_path / "environments").is_file()
    assert not (half / "rest").exists()


def test_what_a_file_includes_counts(requirements: Path) -> None:
    base = requirements.parent / "base.txt"
    base.write_text("# one\n")
    requirements.write_text("-r base.txt\n")
    before = digest(requirements)
    assert digest(requirements) == before
    base.write_text("# two\n")
    assert digest(requirements) != before


def test_what_cannot_be_installed_says_so_and_leaves_nothing_that_looks_ready(
    requirements: Path, tmp_path: Path
) -> None:
    requirements.write_text("./is-not-there\n")
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"requirements.txt cannot be installed(.|\n)*is-not-there"):
            interpreter(requirements, tmp_path / "environments")


@pytest.mark.parametrize("given", ["missing.txt", "missing/python", "."])
def test_what_is_no_python_is_an_error_that_names_it(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"agent.python: "):
        interpreter(Path(given), tmp_path / "environments")


def test_an_interpreter_or_the_folder_of_an_environment_is_taken_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    assert interpreter(home, tmp_path) == interpreter(home / "bin" / "python", tmp_path) == home / "bin" / "python"


def test_nothing_leads_an_agent_with_its_own_python_to_our_packages() -> None:
    outer = {"PATH": "/usr/bin", "PYTHONPATH": "/ours", "PYTHONHOME": "/ours", "VIRTUAL_ENV": "/ours", "HOME": "/h"}
    seen = base_environment(AgentSettings(command="x"), outer, Path("/its/bin/python"))
    assert seen["PATH"].split(":")[0] == "/its/bin"
    assert "/ours" not in seen.values()
    settings = AgentSettings(command="x", environment={"PYTHONPATH": "/asked-for"})
    assert base_environment(settings, outer, Path("/its/bin/python"))["PYTHONPATH"] == "/asked-for"
