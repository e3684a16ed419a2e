"""The wheel, installed with its base dependencies alone: what an analyst or an agent's author needs works, the rest says what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
AGENT = """
import importlib.util, json, os, sys, urllib.request

def run(task):
    assert all(importlib.util.find_spec(name) is None for name in ("duckdb", "lightning_flows")), sys.path
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": task["question"]}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
"""


def _ran(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)


def _newer() -> Path | None:
    """The newest Python of this machine above the one that runs this, up to 3.14."""
    for minor in range(14, sys.version_info.minor, -1):
        for folder in (
            *os.environ["PATH"].split(os.pathsep),
            *map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin")),
        ):
            python = Path(folder, f"python3.{minor}")
            if python.is_file() and _ran(python, "-m", "venv", "--help").returncode == 0:
                return python
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = _ran(UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    [found] = folder.glob("*.whl")
    return found


def test_it_has_what_the_demo_and_the_deployments_need_and_no_module_that_a_user_may_have(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names, deployed = archive.namelist(), archive.read("lightning_flows/prefect.yaml")
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "lightning_core",
        "lightning_flows",
    }
    for folder in ("flows", "tasks", "sql", "examples/calculator", "examples/planner_executor"):
        files = {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.*") if "__pycache__" not in p.parts}
        assert {f"lightning_flows/{file}" for file in files} <= set(names), folder
    assert deployed == (ROOT / "prefect.yaml").read_bytes()


@pytest.mark.parametrize("python", [Path(sys.executable), _newer()], ids=["this Python", "a newer one"])
def test_it_works_with_its_base_dependencies(wheel: Path, tmp_path: Path, python: Path | None) -> None:
    if python is None:
        pytest.skip(f"this machine has no Python newer than {sys.version_info.major}.{sys.version_info.minor}")
    ours, agents = tmp_path / "ours", tmp_path / "agents"
    for made in (ours, agents):
        assert _ran(UV, "venv", "--quiet", "--python", python, made).returncode == 0
    pins = ROOT / "requirements/cpu.txt"
    installed = _ran(
        UV, "pip", "install", "--quiet", "--python", ours / "bin/python", "--constraint", pins, wheel, cwd=tmp_path
    )
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "settings.yaml").write_text(
        f"agent: {{ callable: 'agent.py:run', python: {agents} }}\ntasks: {{ train: tasks.jsonl }}\n"
    )
    (tmp_path / "tasks.jsonl").write_text('{"question": "2 + 2?"}\n')

    def ours_says(*arguments: str) -> str:
        done = _ran(ours / "bin/lightning-flows", *arguments, cwd=tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    assert "train-epoch" in ours_says("--help")
    assert "Usage: lightning-flows doctor" in ours_says("doctor", "--help")
    assert "it can be trained" in ours_says("doctor", "settings.yaml")
    assert "no catalog yet" in ours_says("explain", "rollout")
    assert "-- " in ours_says("sql", "--show", "epoch_report")
    assert _ran(ours / "bin/python", "-c", "import lightning_core.client", cwd=tmp_path).returncode == 0
    for command, extra in (
        (["up"], "pipeline"),
        (["deploy", "settings.yaml"], "pipeline"),
        (["model", "nobody/none"], "train"),
    ):
        assert f"is not installed; this needs pip install 'lightning-flows[{extra}]'\n" in ours_says(*command)
