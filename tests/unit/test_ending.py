"""What a run says at its end: what came of it, answers before and after, and commands that work as printed."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from lightning_core.config import Settings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.gain import Gain, outcome
from lightning_core.epoch.report import epoch_rows
from lightning_core.lake.manifest import EpochManifest
from lightning_core.policies.store import Evaluation, Lineage
from lightning_core.settings_file import load_settings
from lightning_flows.flows import ending
from lightning_flows.flows.cli import main
from lightning_flows.flows.demo import table
from tests.lake_maker import Attempt, derived
from tests.lake_maker import settings as lake_settings
from tests.policy_files import store_with_base, write_model

ROOT = Path(__file__).parents[2]
# Task → reward before and after training: most better, one worse, one as it was.
REWARDS = {f"h{n:02}": (0.0, 1.0) for n in range(12)} | {"h12": (1.0, 0.0), "h13": (1.0, 1.0)}


def evaluation(number: int, epoch: int, task: str, reward: float) -> list[dict[str, Any]]:
    attempt = Attempt(rollout=f"{task}.{epoch}", attempt="a", group=f"{epoch}.{task}", start=1000.0 + number)
    question = {
        "id": task,
        "question": f"How many of {task}?",
        "answer": "3",
        "schema": "a text longer than the question",
    }
    answer = {"reply": f"{reward:.0f} it is", "result": None}
    attempt.root(
        mode="evaluate", epoch=epoch, task_id=task, task=json.dumps(question), output=json.dumps(answer)
    )  # fmt: skip
    attempt.reward(reward)
    return attempt.rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    """A settings file of a run of one epoch with an evaluation before and after it, and a version that is the best."""
    folder = tmp_path_factory.mktemp("a folder")  # commands have to quote it
    home = folder / "home"
    rows: list[dict[str, Any]] = []
    for number in range(4):
        attempt = Attempt(rollout=f"r.{number}", attempt=f"a{number}", group="t", start=10.0 * number)
        root = attempt.root(task_id="t")
        attempt.call([1, 2], [3, 4 + number], parent=root)
        attempt.reward(float(number % 2))
        rows += attempt.rows
    for number, (task, rewards) in enumerate(REWARDS.items()):
        for epoch in (0, 1):
            rows += evaluation(number, epoch, task, rewards[epoch])
    lake, train = derived(home, rows)
    for number in (0, 1):
        evaluated = EpochManifest(run="run", epoch=number, mode="evaluate", opened_offset=0, sealed_offset=1 << 40)
        derive(Epoch(lake_settings(home), evaluated), "key")
        lake.manifests.put_epoch(evaluated)
    store = store_with_base(home)
    store.publish(write_model(home / "made", 1.0), Lineage(run="run", epoch=0, base_model="base", parent="v0000"))
    store.evaluated("v0001", Evaluation(run="run", epoch=1, tasks=14, right=0.9, reward=0.9, held_out="x"))
    train.finish("train policy", "key", {"version": "v0001"}, 1.0)
    lake.manifests.put_epoch(train)
    file = folder / "settings.yaml"
    given = {"run": "run", "agent": {"command": "true"}, "tasks": {"train": "t.jsonl", "evaluate": "e.jsonl"}}
    file.write_text(yaml.safe_dump(given))
    return file, load_settings(file, {"home": str(home)})


def printed(run: tuple[Path, Settings], capsys: pytest.CaptureFixture[str]) -> str:
    file, settings = run
    ending.print_ending(settings, file, (f"home={settings.home}",))
    return capsys.readouterr().out


def test_the_end_says_what_came_of_it(run: tuple[Path, Settings], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(run, capsys)
    assert (
        "Held-out tasks right: 14.3% (95%: 4.0 to 39.9) before training → 92.9% (95%: 68.5 to 98.7) after epoch 0"
        in text
    )
    assert "Held-out reward: 0.143 → 0.929. It rose by more than chance explains: +0.786 a task (95%: +0.4" in text
    assert "http://127" not in text, "Prefect's server ended with the run"


def test_three_answers_are_shown_two_better_and_one_worse(
    run: tuple[Path, Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(run, capsys).splitlines()
    first = lines.index("Held-out tasks, answered before training and after epoch 0:") + 1
    assert lines[first : first + 9] == [
        "  h00: How many of h00?",
        "    before, reward 0.00: reply 0 it is",
        "    after,  reward 1.00: reply 1 it is",
        "  h01: How many of h01?",
        "    before, reward 0.00: reply 0 it is",
        "    after,  reward 1.00: reply 1 it is",
        "  h12: How many of h12?",
        "    before, reward 1.00: reply 1 it is",
        "    after,  reward 0.00: reply 0 it is",
    ]


def test_every_command_works_as_it_is_printed(run: tuple[Path, Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    file, settings = run
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.chdir(ROOT)
    commands = [c for _, c in ending.next_commands(Run(settings), file, (f"home={settings.home}",))]
    words = [shlex.split(command) for command in commands]
    ours = [arguments for tool, *arguments in words if tool.endswith("/lightning-flows")]
    assert [arguments[0] for arguments in ours] == ["policies", "serve", "ui", "why", "sql", "explain"]
    for arguments in ours:
        if arguments[0] == "serve":  # runs until Ctrl-C: its options and its settings are looked at
            given = main.commands["serve"].make_context("serve", arguments[1:]).params
            assert (given["settings_file"], given["assignments"]) == (file, (f"home={settings.home}",))
            continue
        if arguments[0] == "ui":  # likewise
            assert main.commands["ui"].make_context("ui", arguments[1:]).params["home"] == settings.home
            continue
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
    assert (settings.home / "exported" / "policy-v0001" / "config.json").is_file()
    others = [w for w in words if not w[0].endswith("/lightning-flows")]
    assert [w[-1] for w in others] == [f"sqlite:///{settings.home.resolve()}/mlflow.db", "start"]
    (record,) = [w[0] for w in others if w[0].startswith("PREFECT_HOME=")]
    assert record == f"PREFECT_HOME={settings.home}/prefect"


def test_programs_in_a_folder_with_a_space_are_quoted(
    run: tuple[Path, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, settings = run
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(sys, "executable", "/a folder/bin/python")
    commands = [shlex.split(c) for _, c in ending.next_commands(Run(settings), file, ())]
    programs = {next(word for word in words if not word.startswith("PREFECT_HOME=")) for words in commands}
    assert programs == {f"/a folder/bin/{name}" for name in ("lightning-flows", "mlflow", "prefect")}


@pytest.mark.slow  # it starts them
def test_mlflow_and_prefect_know_the_commands_that_are_printed(run: tuple[Path, Settings]) -> None:
    file, settings = run
    others = [c for _, c in ending.next_commands(Run(settings), file, ()) if "/lightning-flows" not in c]
    started = [subprocess.Popen(["sh", "-c", f"{c} --help"], cwd=ROOT, stdout=subprocess.DEVNULL) for c in others]
    assert [process.wait(120) for process in started] == [0, 0]


@pytest.mark.parametrize(("home", "prefect"), [("var/mine", "$PWD/var/mine"), ("/data/mine", "/data/mine")])
def test_prefects_home_is_given_as_a_whole_path(home: str, prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    file = Path("examples/calculator/settings.yaml")
    commands = [c for _, c in ending.next_commands(Run(load_settings(file, {"home": home})), file, ())]
    assert any(command.startswith(f"PREFECT_HOME={prefect}/prefect ") for command in commands)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (Gain(64, 0.6, 0.5, 0.7), "It rose by more than chance explains: +0.600 a task (95%: +0.500 to +0.700)."),
        (Gain(64, -0.6, -0.7, -0.5), "It fell by more than chance explains"),
        (Gain(64, 0.1, -0.1, 0.3), "That may be chance"),
        (Gain(4, 0.6, 0.5, 0.7), "Tasks: 4, too few"),
        (Gain(1, 0.6, None, None), "Tasks: 1, too few"),
    ],
)
def test_whether_a_change_may_be_chance_is_said_in_words(gain: Gain, words: str) -> None:
    assert words in ending.verdict(gain)


def test_a_run_without_held_out_tasks_says_that_nobody_knows(tmp_path: Path) -> None:
    assert outcome(Run(lake_settings(tmp_path))) is None
    assert "nobody knows whether it helped" in "".join(ending.came_of_it(None, []))


@pytest.mark.parametrize("width", [80, 120, 140])
def test_the_table_fits_its_terminal_and_says_why_the_reward_may_fall(run: tuple[Path, Settings], width: int) -> None:
    rows = epoch_rows(Run(run[1]))
    rows[-1] |= {"reward_uniform": 0.75}
    console = Console(file=io.StringIO(), width=width)
    console.print(table(rows, "run", width))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text, "no cell is cut"
    assert "0.750" in text
    assert "so the reward may fall while right rises" in " ".join(text.split())
