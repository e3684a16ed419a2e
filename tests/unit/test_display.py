"""What is shown while a flow runs: live in a terminal, lines elsewhere, all of it in the run's log."""

from __future__ import annotations

import io
import logging
import math
import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_core.config import Settings
from lightning_core.events import At, Event, Rows, Stage, Worth
from lightning_core.events import shown as event
from lightning_flows.flows.display import Display, Lines, WholeLog, shown, time_left

ROOT = Path(__file__).parents[2]

# A flow's records, as its stages and steps make them, with somebody's print and a warning between.
FLOW = """
import logging, signal, sys, time
from pathlib import Path
from lightning_flows.flows.command import interruptible
from lightning_flows.flows.display import shown
from lightning_core.config import Settings
from lightning_core.events import Rows, Stage, shown as event

signal.signal(signal.SIGINT, signal.default_int_handler)
settings = Settings.model_validate({"run": "mine", "home": sys.argv[1], "epochs": 2,
    "agent": {"command": "true"}, "tasks": {"train": "t.jsonl", "evaluate": "e.jsonl"}})
logging.basicConfig(level=logging.INFO)
log = logging.getLogger("lightning_flows")
with interruptible(), shown(settings, whole_run=True):
    from lightning_flows.tasks.progress import Progress
    log.info("train 0: rollouts", extra=event(Stage("train", 0, "rollouts")))
    rollouts = Progress("rollouts", 16, "epoch 0")
    for done in range(16):
        rollouts.add()
        time.sleep(0.1)
    log.warning("a warning of %s", "the agent")
    log.warning("a warning of %s", "the agent")
    print("printed by somebody", file=sys.stderr)
    log.info("a detail, loss 0.5")
    log.info("train 0: rollouts took 1.6 s", extra=event(Stage("train", 0, "rollouts", 1.6)))
    row = {"epoch": 0, "rollouts": 16, "mean_reward": 0.5, "held_out_right": 0.25, "seconds": {"rollouts": 170.0}}
    row |= {"versions": {"policy": "v0001"}}
    log.info("epoch 0: mean reward 0.5", extra=event(Rows([row])))
    log.info("train 1: train", extra=event(Stage("train", 1, "train")))
    time.sleep(float(sys.argv[2]))
print("the result")
"""


def settings(home: Path, **more: object) -> Settings:
    given = {"run": "mine", "home": home, "epochs": 4, "agent": {"command": "true"}}
    return Settings.model_validate(given | {"tasks": {"train": "t.jsonl", "evaluate": "e.jsonl"}} | more)


class Terminal:
    """A flow in a terminal of 80 columns."""

    def __init__(self, home: Path, pause_s: float) -> None:
        self.end, inner = pty.openpty()
        termios.tcsetwinsize(inner, (30, 80))
        self._inner = inner  # held open, so that what is left in it can be read when the flow has ended
        self.before = termios.tcgetattr(inner)
        environment = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", FLOW, str(home), str(pause_s)],
            stdin=inner, stdout=inner, stderr=inner, env=environment, cwd=ROOT, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its controlling terminal
        )  # fmt: skip
        self.text = ""
        os.set_blocking(self.end, False)

    def read_until(self, sign: str | None) -> str:
        deadline = time.monotonic() + 120
        while (sign not in self.text) if sign is not None else (self.process.poll() is None):
            assert time.monotonic() < deadline, self.text[-2000:]
            self._read()
            time.sleep(0.05)
        self._read()
        return self.text

    def _read(self) -> None:
        try:
            while part := os.read(self.end, 65536):
                self.text += part.decode(errors="replace")
        except BlockingIOError:
            pass


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.slow
def test_a_terminal_has_one_live_display_with_warnings_above_and_only_the_result_stays(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, 1)
    text = terminal.read_until(None)
    assert terminal.process.returncode == 0, text
    seen = plain(text)
    assert "run mine: epoch 0 (1 of 2)" in seen
    assert re.search(r"rollouts ━+.* \d+/16 +0:0\d left", seen), "a bar, what is done of it, and the time left"
    assert "16 rollouts, reward 0.500, held-out right 25.0%" in seen
    assert "about 3 min left of the run" in seen
    assert seen.count("a warning of the agent") == 2
    assert "printed by somebody" in seen
    assert "a detail" not in seen
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", seen) if "the whole log" not in line)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"
    assert plain(text[text.rindex("\x1b[?25h") :]).split() == ["the", "result"]
    log = (tmp_path / "logs" / "run-mine.log").read_text()
    for line in ("a detail, loss 0.5", "a warning of the agent", "train 0: rollouts took 1.6 s"):
        assert line in log


@pytest.mark.slow
def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, 100)
    terminal.read_until("epoch 1 (2 of 2)")
    os.write(terminal.end, b"\x03")
    text = terminal.read_until(None)
    assert terminal.process.returncode == 130, plain(text)[-1000:]
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"
    assert plain(text).rstrip().endswith("The same command goes on from here.")
    assert termios.tcgetattr(terminal._inner) == terminal.before


@pytest.mark.slow
def test_where_there_is_no_terminal_no_line_is_there_twice_but_warnings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLOW, str(tmp_path), "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "the result\n"), done.stderr
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in done.stderr.splitlines()]
    assert lines == [
        f"run mine: the whole log is {tmp_path}/logs/run-mine.log",
        "a warning of the agent",
        "a warning of the agent",
        "printed by somebody",
        "train 0: rollouts took 1.6 s",
        "epoch 0: mean reward 0.5",
    ]


def test_a_stage_that_lasts_gives_a_sign_of_life_and_a_quick_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    lines, moment = Lines(), float(math.ceil(time.monotonic()))  # whole: 30 s are then exactly 30

    def say(text: str, after_s: float, event: Event = At(counted=True)) -> None:  # noqa: B008 - frozen
        monkeypatch.setattr(time, "monotonic", lambda: moment + after_s)
        record = logging.LogRecord("x", logging.INFO, "", 0, text, (), None)
        record.event = event
        lines.emit(record)

    for done in range(1, 13):
        say(f"train 0 rollouts: {done}/12", 5.0 * done)
    assert out.getvalue().splitlines() == ["train 0 rollouts: 6/12", "train 0 rollouts: 12/12"]
    for seconds in range(0, 36, 3):
        say(f"vLLM: importing ({seconds} s)", 100.0 + seconds, Worth())
    assert out.getvalue().splitlines()[2:] == ["vLLM: importing (0 s)", "vLLM: importing (30 s)"]


def test_a_log_that_cannot_be_written_is_said_once_and_what_it_lacks_is_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = WholeLog("/dev/full")
    for _ in range(3):
        log.handle(logging.LogRecord("x", logging.INFO, "", 0, "text", (), None))
    log.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("the log /dev/full cannot be written: [Errno 28]")
    assert last == "the log /dev/full lacks 3 lines"


def test_verbose_leaves_the_log_lines_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    from lightning_flows.flows.display import verbose_option

    root, out = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(out)
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", logging.INFO)

    @click.command()
    @verbose_option
    def flow() -> None:
        with shown(settings(tmp_path)):
            logging.getLogger("flow").info("a detail")

    flow(["-v"], standalone_mode=False)
    assert out.getvalue() == "a detail\n"
    flow([], standalone_mode=False)
    assert out.getvalue() == "a detail\n"
    assert root.handlers == [handler], "as they were before"
    assert (tmp_path / "logs" / "run-mine.log").read_text().count("a detail") == 2


def test_stages_that_run_side_by_side_have_a_line_each(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    display = Display(settings(tmp_path, epochs=2, async_level=0), console, whole_run=True)
    for stage in (Stage("train", 0, "train policy"), Stage("train", 1, "rollouts")):
        record = logging.LogRecord("x", logging.INFO, "", 0, "begins", (), None)
        record.event = stage
        display.emit(record)
    console.print(display.render())
    assert isinstance(console.file, io.StringIO)
    lines = [line.split()[0] for line in plain(console.file.getvalue()).splitlines()]
    assert lines[:3] == ["run", "train", "rollouts"]


def test_the_time_left_is_that_of_the_epochs_and_evaluations_to_come(tmp_path: Path) -> None:
    run = settings(tmp_path, evaluation={"every": 2})
    before: dict[str, Any] = {"epoch": -1, "seconds": {"evaluate": 20.0}}
    assert time_left(run, [before]) is None, "no epoch has been seen yet"
    first: dict[str, Any] = {
        "epoch": 0,
        "seconds": {"rollouts": 30.0, "train policy": 30.0},
        "versions": {"p": "v0001"},
    }
    assert time_left(run, [before, first]) == 3 * 60 + 2 * 20
    ahead = {"epoch": 1, "seconds": {"rollouts": 30.0}, "versions": {}}
    assert time_left(run, [before, first, ahead]) == 3 * 60 + 2 * 20, "its rollouts are there, no more"
    second = first | {"epoch": 1}
    under_way = ("evaluate", 2, time.monotonic() - 1000.0)
    assert time_left(run, [before, first, second], under_way) == pytest.approx(2 * 60 + 20)
    last = [first | {"epoch": number} for number in (2, 3)]
    second["seconds"] = first["seconds"] | {"evaluate": 20.0}
    last[-1]["seconds"] = first["seconds"] | {"evaluate": 20.0}
    assert time_left(run, [before, first, second, *last]) == 0


def test_events_are_what_log_records_carry() -> None:
    record = logging.getLogger("x").makeRecord("x", logging.INFO, "", 0, "text", (), None, extra=event(Rows([])))
    assert isinstance(record.event, Rows)  # type: ignore[attr-defined]
