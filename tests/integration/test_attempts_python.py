"""Attempts of agents that have a Python of their own (`agent.python`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_core.agents.attempt import AttemptResult, AttemptSpec
from lightning_core.agents.runner import Runner
from lightning_core.agents.venv import digest
from lightning_core.config import AgentSettings, SettingsError
from tests.standin_server import Standin, standin

AGENT = """
import json, sys

def run(task):
    found = [name for name in ("duckdb", "prefect", "yaml", "lightning_flows", "tests") if __import__("importlib.util").util.find_spec(name)]
    return {"prefix": sys.prefix, "ours": found, "n": task["n"]}

if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Standin]:
    with standin() as running:
        yield running


@pytest.mark.parametrize("kind", ["callable", "command"])
@pytest.mark.parametrize("program", ["python", "python3"])
def test_an_agent_runs_with_its_own_packages_and_without_ours(
    server: Standin, tmp_path: Path, kind: str, program: str
) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    how = {"command": f"{program} {tmp_path}/agent.py", "callable": f"{tmp_path}/agent.py:run"}[kind]
    settings = {kind: how, "python": tmp_path / "requirements.txt", "environments": tmp_path / "environments"}
    with Runner(AgentSettings(**settings)) as runner:
        result = _run(runner, server, kind + program)
    assert result.status == "ok", result.error
    home = tmp_path / "environments" / digest(tmp_path / "requirements.txt")
    assert result.output == {"prefix": str(home), "ours": [], "n": 21}
    assert str(home) != sys.prefix


def test_an_environment_that_cannot_be_made_is_an_error_before_the_first_rollout(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"agent\.python: there is no file"):
        Runner(AgentSettings(command="python x.py", python=tmp_path / "requirements.txt"))


def _run(runner: Runner, server: Standin, name: str) -> AttemptResult:
    url = f"{server.url}/rollouts/r.{name}/attempts/a"
    return runner.run(AttemptSpec("test", 0, "train", f"r.{name}", "a", "g", "t", {"n": 21}, url, "token", "secret"))
