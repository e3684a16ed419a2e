"""What the terminal shows while a flow runs: one live display, or plain lines where there is no terminal.

Both are handlers of logging, and go to stderr: stdout is for the result. Every record goes to `home/logs/run-<run>.log`;
shown are warnings, and records that carry an event (lightning_core.events). `--verbose` shows all instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightning_core.config import Settings
from lightning_core.events import At, Rows, Stage, Worth, event_of, named
from lightning_core.tracking.page import weighs

_SIGN_OF_LIFE_S = 30.0  # between lines of one stage where there is no terminal
_LINE, _TIME = "%(asctime)s %(message)s", "%H:%M:%S"
_SO_FAR = re.compile(r" \(\d+ s\)$")  # at the end of a line that differs from the one before in this alone
_NEWEST = 3  # epochs that the run's time left is reckoned by

verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=lambda context, _, value: context.meta.update({__name__: value}),
    help="Print every line of the log instead of the display.",
)


@contextlib.contextmanager
def shown(settings: Settings, whole_run: bool = False) -> Iterator[None]:
    """Show what the flow in this context does, and write all of it to the run's log, which is named at the start.

    `whole_run`: it trains all epochs of the settings, so the time left can be estimated.
    """
    root = logging.getLogger()
    log = settings.home / "logs" / f"run-{settings.run}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    whole = WholeLog(log)
    whole.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    context = click.get_current_context(silent=True)
    verbose = context is not None and bool(context.meta.get(__name__))
    console = Console(stderr=True)
    click.echo(f"run {settings.run}: the whole log is {log}", err=True)
    handlers: list[logging.Handler] = [whole]
    replaced: list[logging.Handler] = []
    with contextlib.ExitStack() as stack:
        if not verbose:
            replaced = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
            if console.is_terminal and not console.is_dumb_terminal:
                display = Display(settings, console, whole_run)
                stack.enter_context(display.live)
                handlers.append(display)
            else:
                handlers.append(Lines())
            handlers[-1].setFormatter(logging.Formatter(_LINE, _TIME))
            handlers[-1].addFilter(says_more_than_prefect)
        # Ours first: Prefect, when it is imported, gives a root logger without handlers its own.
        for handler in handlers:
            root.addHandler(handler)
        for handler in replaced:
            root.removeHandler(handler)
        try:
            yield
        finally:
            for handler in replaced:
                root.addHandler(handler)
            for handler in handlers:
                root.removeHandler(handler)
                handler.close()


def says_more_than_prefect(record: logging.LogRecord) -> bool:
    """Return whether a record says more than Prefect's lines on the end of a task or flow.

    Our own lines report that end, or the error that the command raises.
    """
    if hasattr(record, "mendable"):  # lightning_core/errors.py; the command ends with it
        return False
    return not record.getMessage().startswith(
        ("Finished in state", "Crash detected! Execution was aborted by an interrupt")
    )


class WholeLog(logging.FileHandler):
    """The run's log. Where it cannot be written, as on a full disk, that is said once, and what it lacks is counted."""

    lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.lost:
            sys.stderr.write(f"the log {self.baseFilename} cannot be written: {sys.exc_info()[1]}\n")
        self.lost += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what was buffered is counted already
            super().close()
        if self.lost:
            sys.stderr.write(f"the log {self.baseFilename} lacks {self.lost} lines\n")
            self.lost = 0


class Lines(logging.Handler):
    """A line a stage, and one now and then while it lasts; no line twice. Warnings are all there."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()
        self._last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.levelno >= logging.WARNING or self._is_due(record):
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()
                self._last = time.monotonic()
        except Exception:  # noqa: BLE001 - as logging's own handlers
            self.handleError(record)

    def _is_due(self, record: logging.LogRecord) -> bool:
        event, text = event_of(record), record.getMessage()
        if event is None or text in self._said or (isinstance(event, Stage) and event.seconds is None):
            return False
        what = _SO_FAR.sub("", text)
        goes_on = isinstance(event, At) or what in self._said
        if goes_on and time.monotonic() - self._last < _SIGN_OF_LIFE_S:
            return False
        self._said |= {text, what}
        return True


class Display(logging.Handler):
    """The live display: run, epoch, stages under way with their bars and time left, results so far. Warnings stand above it."""

    def __init__(self, settings: Settings, console: Console, whole_run: bool) -> None:
        super().__init__()
        self._settings, self._whole_run = settings, whole_run
        self._console = console
        self._rows: list[dict[str, Any]] = []
        self._stages: dict[tuple[str, int, str], float] = {}  # under way → since when
        self._unit: tuple[str, int, float] | None = None  # the newest (mode, epoch, since when)
        self._now = ""
        # What is printed by others goes above it; stdout only where that is the terminal too.
        self.live = Live(
            get_renderable=self.render, console=console, transient=True, redirect_stdout=sys.stdout.isatty()
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = event_of(record)
            if isinstance(event, Stage):
                self._follow(event)
            elif isinstance(event, Rows):
                self._rows = event.rows
            if record.levelno >= logging.WARNING:
                self._console.print(Text(self.format(record)))
            elif isinstance(event, Worth) or (isinstance(event, At) and not event.counted):
                self._now = record.getMessage()
        except Exception:  # noqa: BLE001 - as logging's own handlers
            self.handleError(record)

    def _follow(self, stage: Stage) -> None:
        if stage.seconds is not None:
            self._stages.pop((stage.mode, stage.epoch, stage.name), None)
            return
        now = time.monotonic()
        self._stages[stage.mode, stage.epoch, stage.name] = now
        if self._unit is None or self._unit[:2] != (stage.mode, stage.epoch):
            self._unit = (stage.mode, stage.epoch, now)
        self._now = ""

    def render(self) -> RenderableType:
        """Return the display at this moment: no line is wider than the terminal."""
        parts: list[RenderableType] = [_line(self._head(), "bold"), self._bars()]
        parts += [_line(text, "") for text in (self._so_far(),) if text]
        api = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
        parts += [_line(f"Prefect's UI, while this runs: {api}", "dim")] if api else []
        notes = [progress.note for progress in self._under_way() if progress.note]
        now = notes[0] if notes else self._now
        parts += [_line(now, "dim")] if now and not (api and api in now) else []
        return Group(*parts)

    def _head(self) -> str:
        unit = "" if self._unit is None else f": {_title(self._settings.epochs, *self._unit[:2])}"
        left = time_left(self._settings, self._rows, self._unit) if self._whole_run else None
        if left is not None:
            left = max([left, *(_left(progress) or 0.0 for progress in self._under_way())])
        return f"run {self._settings.run}{unit}" + ("" if left is None else f", about {_minutes(left)} left of the run")

    def _bars(self) -> Table:
        bars = Table.grid(padding=(0, 1), expand=True)
        for column in ({}, {"ratio": 1}, {"justify": "right"}, {"justify": "right"}):
            bars.add_column(no_wrap=True, **column)
        counted = self._under_way()
        for progress in counted:
            left = _left(progress)
            bars.add_row(
                progress.what,
                ProgressBar(total=progress.total, completed=progress.done),
                f"{progress.done}/{progress.total}",
                "" if left is None else f"{_clock(left)} left",
            )
        for (mode, epoch, stage), began in list(self._stages.items()):
            if named(mode, epoch) not in {progress.of for progress in counted}:
                bars.add_row(stage, ProgressBar(total=None, pulse=True), "", _clock(time.monotonic() - began))
        if not self._stages:
            bars.add_row("getting ready", ProgressBar(total=None, pulse=True), "", "")
        return bars

    def _counts(self) -> list[Any]:
        if self._unit is None:
            return []
        from lightning_flows.tasks.progress import counts  # imports Prefect, which has its address by the first stage

        return counts()

    def _under_way(self) -> list[Any]:
        at_work = {named(mode, epoch) for mode, epoch, _ in list(self._stages)}
        return [progress for progress in self._counts() if not progress.finished and progress.of in at_work]

    def _so_far(self) -> str:
        rollouts = sum(row["rollouts"] or 0 for row in self._rows)
        recorded = {named("train", row["epoch"]) for row in self._rows if row["rollouts"]}
        for progress in self._counts():
            is_training = progress.of.startswith("epoch ")
            if is_training and progress.what.startswith("rollouts") and progress.of not in recorded:
                rollouts += progress.done
        parts = [f"{rollouts} rollouts"] if rollouts else []
        reward = "reward_uniform" if weighs(self._rows) else "mean_reward"
        rewards = [row[reward] for row in self._rows if row.get(reward) is not None]
        right = [row["held_out_right"] for row in self._rows if row["held_out_right"] is not None]
        parts += [f"reward {_course([f'{reward:.3f}' for reward in rewards])}"] if rewards else []
        parts += [f"held-out right {_course([f'{share:.1%}' for share in right])}"] if right else []
        return ", ".join(parts)


def time_left(
    settings: Settings, rows: list[dict[str, Any]], unit: tuple[str, int, float] | None = None
) -> float | None:
    """Return the seconds until the run's last epoch and evaluation are done; None before the first epoch is done.

    They are estimated from the epochs before (`rows`: those of epoch_rows).
    `unit`: what is under way, as mode, epoch and the moment (time.monotonic) when it began.
    """
    done = [r for r in rows if r["epoch"] >= 0 and r["versions"]]  # of one ahead there may be the rollouts alone
    trained = {r["epoch"]: sum(s for n, s in r["seconds"].items() if n != "evaluate") for r in done}
    tried = {r["epoch"] + 1: r["seconds"]["evaluate"] for r in rows if "evaluate" in r["seconds"]}
    trained = {epoch: seconds for epoch, seconds in trained.items() if seconds}
    if not trained:
        return None
    an_epoch, an_evaluation = _mean(list(trained.values())[-_NEWEST:]), _mean(list(tried.values())[-_NEWEST:])
    left = [("train", n, an_epoch) for n in range(max(trained) + 1, settings.epochs)]
    evaluations = range(max(tried, default=-1) + 1, settings.epochs + 1)
    left += [("evaluate", n, an_evaluation) for n in evaluations if settings.evaluates_after(n)]
    seconds = sum(of for *_, of in left)
    for mode, number, of in left:
        if unit is not None and unit[:2] == (mode, number):
            seconds -= min(of, time.monotonic() - unit[2])
    return seconds


def _left(progress: Any) -> float | None:
    if not progress.done:
        return None
    return float((time.monotonic() - progress.began) / progress.done * (progress.total - progress.done))


def _title(epochs: int, mode: str, epoch: int) -> str:
    if mode == "train":
        return f"{named(mode, epoch)} ({epoch + 1} of {max(epochs, epoch + 1)})"
    return named(mode, epoch)


def _course(values: list[str]) -> str:
    return " → ".join(values if len(values) <= _NEWEST + 1 else [values[0], "…", *values[-_NEWEST:]])


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
