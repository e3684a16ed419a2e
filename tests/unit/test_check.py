"""What would end a run later is found first, by the command: `lightning-flows check`, `train` and its kin, `doctor`, `init`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from lightning_core.checks.check import require
from lightning_core.config import SettingsError
from lightning_core.settings_file import load_settings
from lightning_core.user_code import describe
from lightning_flows.flows.cli import main

pytestmark = pytest.mark.slow  # it starts commands, or imports Prefect

CLI = Path(sys.executable).with_name("lightning-flows")
AGENT = "def run(task):\n    return task['question']\n"
GRADER = "def grade(task, output, spans):\n    return 1.0\n"


def project(folder: Path, **changes: Any) -> Path:
    """A folder of a user's, outside the repository, with all that a run needs."""
    (folder / "my_agent.py").write_text(AGENT)
    (folder / "my_grader.py").write_text(GRADER)
    (folder / "train.jsonl").write_text('{"id": "1", "question": "2 + 3?"}\n{"id": "2", "question": "2 + 4?"}\n')
    settings = {
        "run": "r",
        "agent": {"callable": "my_agent.py:run"},
        "tasks": {"train": "train.jsonl"},
        "reward": {"grader": "my_grader.py:grade"},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings | changes))
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CLI, *arguments], cwd=folder, capture_output=True, text=True, timeout=240)


def here(folder: Path, *arguments: str) -> Result:
    """The command in this process, which has its imports already."""
    with contextlib.chdir(folder):
        return CliRunner().invoke(main, arguments)


def test_a_line_for_each_thing_and_what_was_found(tmp_path: Path) -> None:
    done = command(project(tmp_path), "check", "settings.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '✓ tasks.train     2, the first is {"id": "1", "question": "2 + 3?"}' in done.stdout
    assert "✓ agent           my_agent.py:run: run(task)" in done.stdout
    assert "✓ reward.grader   grade(task, output, spans)" in done.stdout
    for name in ("settings", "rules", "model", "vllm", "memory", "disk"):
        assert any(name in line and line[0] in "✓!" for line in done.stdout.splitlines()), name
    assert done.stdout.endswith("it can run\n")
    assert not (tmp_path / "var").exists(), "it changes nothing"


def test_all_that_is_wrong_is_said_at_once_before_prefect_starts(tmp_path: Path) -> None:
    folder = project(tmp_path, tasks={"train": "missing.jsonl"}, reward={"grader": "my_grader.py:grad"})
    for arguments, ends in ((["check", "settings.yaml"], "2 of 11 are wrong\n"), (["train", "settings.yaml"], "")):
        done = here(folder, *arguments)
        message = done.output
        assert done.exit_code == 1
        assert "missing.jsonl: no such file; give a .jsonl" in message
        assert "'my_grader.py' has no function 'grad'; it has: grade" in message
        assert message.endswith(ends)
        assert "Traceback" not in message and "Prefect" not in message
    assert not (tmp_path / "var").exists()


@pytest.mark.parametrize("name", ["train-epoch", "roll-out", "learn", "regrade", "evaluate", "finetune"])
def test_every_command_that_runs_a_flow_checks_what_it_needs_first(tmp_path: Path, name: str) -> None:
    grader = tmp_path / "my_grader.py"
    folder = project(tmp_path, reward={"grader": "my_grader.py:grade", "reward_match": None})
    grader.write_text("def grade(task):\n    return 1.0\n")
    done = here(folder, name, "settings.yaml")
    assert done.exit_code == 1
    wrong = {
        "finetune": "finetune: policy 'policy' has `algorithm: grpo`",  # which grades nothing
        "evaluate": "✗ tasks.evaluate is not set",
    }.get(name, "reward.grader: grade(task) is called with (task, output, spans), which it does not take")
    assert wrong in done.output
    assert "Prefect" not in done.output and "Traceback" not in done.output
    assert not (tmp_path / "var" / "prefect").exists()


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        ("def grade(task, output):\n    return 1.0", "grade(task, output) is called with (task, output, spans)"),
        ("def grade(output, task, spans):\n    return 1.0", "in that order; its parameters are (output, task, spans)"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os\nos._exit(0)", "its import ended the process (exit code 0)"),
        ("import sys\nsys.exit('no GPU')", "it ends its process: sys.exit('no GPU')"),
        ("import os, signal\nprint('on my way')\nos.kill(os.getpid(), signal.SIGSEGV)", "(signal SIGSEGV)"),
        ("import os\nos.kill(os.getpid(), 36)", "its import ended the process (signal 36)"),
        ("import time\ntime.sleep(1000)", "its import did not end within 2 s, so it was stopped"),
    ],
)  # fmt: skip
def test_a_grader_that_training_could_not_use_is_an_error(tmp_path: Path, grader: str, message: str) -> None:
    folder = project(tmp_path)
    (folder / "my_grader.py").write_text(grader)
    deadline = "2" if "sleep" in grader else "120"
    done = here(folder, "check", "settings.yaml", "--deadline", deadline)
    assert done.exit_code == 1
    assert message in done.output
    assert "✗ reward.grader" in done.output and "1 of 11 are wrong" in done.output
    assert "Traceback" not in done.output


def test_a_grader_finds_the_modules_beside_it(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "points.py").write_text("POINTS = 1.0\n")
    (folder / "my_grader.py").write_text("from points import POINTS\n" + GRADER)
    assert here(folder, "check", "settings.yaml").exit_code == 0


def test_the_users_own_exception_shows_their_frames_and_none_of_ours(tmp_path: Path) -> None:
    folder = project(tmp_path, tasks={"train": "my_data.py:rows"})
    (folder / "my_agent.py").write_text("import helper\n" + AGENT)
    (folder / "helper.py").write_text("def value():\n    return 1 / 0\n\n\nVALUE = value()\n")
    (folder / "my_data.py").write_text("def rows():\n    raise KeyError('split')\n")
    done = here(folder, "train", "settings.yaml")
    assert done.exit_code == 1
    for message in (
        "ZeroDivisionError: division by zero",
        "in value",
        'helper.py", line 5',
        "KeyError: 'split'",
        "in rows",
    ):
        assert done.stderr.count(message) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "lightning_core" not in done.stderr and "importlib" not in done.stderr


OF_THE_USER = ("tasks", "flows", "sql", "evaluate", "train")


def test_a_users_modules_may_have_the_names_of_our_folders_and_flows(tmp_path: Path) -> None:
    folder = project(tmp_path)
    for name in OF_THE_USER:
        (folder / f"{name}.py").write_text("POINTS = 1.0\n")
    imports = "".join(f"from {name} import POINTS\n" for name in OF_THE_USER)
    for file in ("my_grader.py", "my_agent.py"):
        (folder / file).write_text(imports + (folder / file).read_text())
    checked = command(folder, "check", "settings.yaml")
    assert checked.returncode == 0, checked.stdout
    examined = command(folder, "doctor", "settings.yaml")
    assert "ran: the agent ran to its end" in examined.stdout, examined.stdout + examined.stderr
    assert "rewards: 1 rewards" in examined.stdout


@pytest.mark.parametrize("cwd", ["the repository", "elsewhere"])
def test_a_flow_imports_a_users_modules_where_they_have_such_names(tmp_path: Path, cwd: str) -> None:
    """Also where the repository comes first on the import path."""
    for name in OF_THE_USER:
        (tmp_path / f"{name}.py").write_text("POINTS = 1.0\n")
    (tmp_path / "my_grader.py").write_text("".join(f"from {name} import POINTS\n" for name in OF_THE_USER) + GRADER)
    code = (
        "import lightning_flows.flows.train; from lightning_core.loading import load_callable;"
        f"print(load_callable('{tmp_path}/my_grader.py:grade', 'reward.grader')(None, None, None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2] if cwd == "the repository" else tmp_path,
        env=os.environ | {"PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == "1.0\n", done.stderr


@pytest.mark.parametrize(
    ("agent", "mark", "message"),
    [
        ({"command": "python my_agent.py"}, "✓", "python my_agent.py"),
        ({"command": "python no_agent.py"}, "✗", "there is no file no_agent.py in"),
        ({"command": "no-such-program"}, "✗", "there is no program 'no-such-program'"),
        ({"callable": "my_agent.py:run", "python": "requirements.txt"}, "!", "its environment is not built yet"),
        ({"callable": "my_agent.py:nobody"}, "✗", "has no 'nobody'"),
    ],
)
def test_what_is_found_of_an_agent(tmp_path: Path, agent: dict[str, str], mark: str, message: str) -> None:
    folder = project(tmp_path, agent=agent)
    (folder / "requirements.txt").write_text("openai\n")
    done = here(folder, "check", "settings.yaml")
    [line] = [line for line in done.output.splitlines() if line[2:].startswith("agent ")]
    assert line.startswith(mark) and message in line
    assert done.exit_code == (mark == "✗")
    assert not (folder / "var").exists(), "no environment is made"


def test_settings_that_cannot_be_read_are_the_first_cross(tmp_path: Path) -> None:
    done = here(project(tmp_path, rollout={"groupsize": 3}), "check", "settings.yaml")
    assert done.exit_code == 1
    assert done.output.startswith("✗ settings        settings.yaml: unknown key `rollout.groupsize`; known here:")


def test_it_brings_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from lightning_flows.flows.cli import main;"
        "done = CliRunner().invoke(main, ['check', 'settings.yaml']); assert done.exit_code == 0, done.output;"
        "print(sorted({'prefect', 'torch', 'vllm', 'mlflow', 'transformers', 'polars'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project(tmp_path), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_what_was_in_order_is_not_looked_at_again_until_it_changes(tmp_path: Path) -> None:
    """A command checks, then its flow, then the flows in it."""
    project(tmp_path, tasks={"train": "train.jsonl", "evaluate": "train.jsonl"})
    with contextlib.chdir(tmp_path):
        settings, logged = load_settings("settings.yaml"), list[str]()
        require(settings, "train", say=logged.append)
        assert len(logged) == 1 and logged[0].startswith("checked: tasks.train, tasks.evaluate, agent, reward.grader")
        require(settings, "train", say=logged.append)
        require(settings, "evaluate", say=logged.append)
        assert len(logged) == 1
        with pytest.raises(SettingsError, match="set `algorithm: sft`"):
            require(settings, "finetune", say=logged.append)
        (tmp_path / "my_grader.py").write_text("def grade():\n    return 1.0\n")
        with pytest.raises(SettingsError, match=r"grade\(\) is called with \(task, output, spans\)"):
            require(settings, "evaluate", say=logged.append)


def test_init_writes_an_example_that_check_and_doctor_pass_and_overwrites_nothing(tmp_path: Path) -> None:
    made = command(tmp_path, "init", "sums")
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "sums"
    assert "cd sums" in made.stdout and "lightning-flows train settings.yaml" in made.stdout
    train, held_out = (
        {json.loads(line)["question"] for line in (folder / name).read_text().splitlines()}
        for name in ("train.jsonl", "held_out.jsonl")
    )
    assert len(train) >= 48 and len(held_out) >= 24 and not train & held_out
    checked = command(folder, "check", "settings.yaml")
    assert checked.returncode == 0, checked.stdout
    examined = command(folder, "doctor", "settings.yaml")
    assert (examined.returncode, examined.stdout.splitlines()[-1]) == (0, "it can be trained"), examined.stdout
    as_command = command(folder, "doctor", "--agent", f"{sys.executable} agent.py")
    assert "1 calls came through the gateway" in as_command.stdout, as_command.stdout
    (folder / "agent.py").write_text("mine\n")
    again = command(tmp_path, "init", "sums")
    assert again.returncode == 1
    assert "sums/agent.py is there already, and nothing is overwritten" in again.stderr
    assert (folder / "agent.py").read_text() == "mine\n"


def test_a_check_that_is_interrupted_ends_at_once(tmp_path: Path) -> None:
    folder = project(tmp_path)
    (folder / "my_agent.py").write_text(
        "import os, pathlib, time\npathlib.Path('begun').write_text(str(os.getpid()))\ntime.sleep(1000)\n"
    )
    with subprocess.Popen([CLI, "check", "settings.yaml"], cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "begun").exists() or not (folder / "begun").read_text():
            time.sleep(0.05)
        process.terminate()
        _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in message
    assert not Path(f"/proc/{(folder / 'begun').read_text()}").exists(), "what imported it has gone too"


def test_an_interruption_that_python_loses_ends_a_check_all_the_same(tmp_path: Path) -> None:
    """What is raised while Python calls back, of an import or a collected object, is printed and forgotten."""
    folder = project(tmp_path)
    code = (
        "import os, signal, lightning_core.checks.check as module\n"
        "from lightning_flows.flows.cli import main\n"
        "class Collected:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGTERM)\n"
        "def look(*_, **__):\n"
        "    Collected()\n"
        "    return []\n"
        "module.check = look\n"
        "main(['check', 'settings.yaml'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert "Exception ignored" in done.stderr, "the test loses it"
    assert (done.returncode, "it can run" in done.stdout) == (130, False)


def test_a_users_frame_is_shown_though_its_folder_is_named_like_a_module_of_python() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("1 / 0", "/home/me/importlib_notes/agent.py", "exec"))
    assert 'File "/home/me/importlib_notes/agent.py", line 1' in describe(caught.value)
