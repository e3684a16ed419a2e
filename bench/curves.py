"""Reward by epoch, on held-out tasks, of the three experiments that follow Agent Lightning's paper; real runs on this machine.

    LIGHTNING_DATA=… make bench-curves                                # calc_x, spider, musique: hours on two cores
    LIGHTNING_DATA=… make bench-curves ARGS="calc_x --minutes 30"     # one, for so long; the next call goes on
    make bench-curves ARGS="--minutes 0"                              # only the figures, plots and tables of what there is

Each runs the commands that its README gives, in `var/curves/<task>`. Every evaluation is a row of bench/results/curves.jsonl:
`epochs` trained, `rollouts` for it, mean reward of the held-out tasks with its 95% interval, what was `gained` since the
first evaluation and since the model was `shown`, task by task (sql/analysis/held_out_gains.sql), and what `lightning-flows why`
finds of the last epoch. A run's rows replace those of the run before.
Prints `curve_<task>`: the last evaluation's reward beside the first one's; draws docs/curve-<task>.svg and docs/tasks.md.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from bench.plot import Line, plot
from bench.report import figure, say
from bench.runs import ROOT, findings, flow_command, hours_parser, read_rows, run_for
from docs.marks import between
from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.held_out import held_out
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.settings_file import load_settings

RESULTS = ROOT / "bench/results/curves.jsonl"
PAGE = ROOT / "docs/tasks.md"
TASKS = ("calc_x", "spider", "musique")
COMMANDS = (("evaluate", "settings.yaml"), ("train", "demonstrate.yaml"), ("train", "settings.yaml"))


def run(task: str, home: Path, until: float) -> bool:
    """The commands of a task, each where the one before it ended; False where the time is up."""
    home.mkdir(parents=True, exist_ok=True)
    example = ROOT / "examples" / task
    for command, file in COMMANDS:
        settings = load_settings(example / file, {"home": str(home)})
        if _is_done(Lake(home), settings, 0 if command == "evaluate" else settings.epochs):
            continue
        say(f"{task}: {command} {file}, {home}/run.log")
        arguments = flow_command(command, example / file, {"home": str(home)})
        if time.monotonic() >= until or not run_for(arguments, home / "run.log", until, f"{task}, {command} {file}"):
            return False
    return True


def _is_done(lake: Lake, settings: Settings, epochs: int) -> bool:
    """Whether so many epochs are trained and, where there are held-out tasks, evaluated."""
    last = lake.manifests.epoch(settings.run, epochs, "evaluate")
    evaluated = settings.tasks.evaluate is None or (last is not None and last.recorded)
    return lake.manifests.next_epoch(settings.run) >= epochs and evaluated


def rows_of(task: str, settings: Settings) -> list[dict[str, Any]]:
    """A row per evaluation of the run, in the order of the epochs."""
    lake = Lake(settings.home)
    run = Run(settings)
    epochs = lake.manifests.epochs(settings.run)
    diagnosed = findings(lake, settings.run)
    with catalog.connect(lake.root) as con:
        asked = con.sql("FROM held_out_gains(p_run := $run)", params={"run": settings.run})
        gains = {(row["since"], row["epoch"]): row for row in asked.to_arrow_table().to_pylist()}
    found, rollouts = [], 0
    for manifest in sorted(epochs, key=lambda each: (each.epoch, each.mode == "train")):
        if manifest.mode == "train":
            rollouts += len(manifest.planned)
        elif manifest.recorded:
            result, epoch = held_out(run.at(manifest)), manifest.epoch
            found.append(
                {"task": task, "epochs": epoch, "rollouts": rollouts, "held_out_tasks": result.tasks}
                | {"right": result.right, "reward": result.reward, "interval": result.reward_interval}
                | {"gained": _gain(gains.get((0, epoch))), "since_shown": _gain(gains.get((1, epoch)))}
                | {"findings": diagnosed.get(epoch, [])}
            )
    return found


def _gain(row: dict[str, Any] | None) -> list[float] | None:
    """Mean, and the ends of its interval."""
    return None if row is None else [row["gained"], row["low"], row["high"]]


def keep(task: str, rows: list[dict[str, Any]], path: Path = RESULTS) -> None:
    """The task's rows in place of those that were there."""
    others = [row for row in read_rows(path) if row["task"] != task]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in (*others, *rows)))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per evaluation, and a verdict on the last one."""
    lines = [
        "| epochs | rollouts | held-out reward (95%) | right | gained, task by task (95%) | since it was shown |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        how = " (shown)" if row["epochs"] == 1 else ""
        low, high = row["interval"]
        lines.append(
            f"| {row['epochs']}{how} | {row['rollouts']} | {row['reward']:.3f} ({low:.2f} to {high:.2f}) | {row['right']:.0%} | "
            f"{_cell(row['gained'])} | {_cell(row['since_shown'])} |"
        )
    return "\n".join([*lines, "", verdict(rows)])


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether it rose, in words: since before, and since the model was shown, which is what GRPO did."""
    sentences = []
    for name, since in (("gained", "Since the first evaluation"), ("since_shown", "With GRPO, since it was shown,")):
        if rows[-1][name] is not None:
            sentences.append(f"{since} it {_moved(*rows[-1][name])}.")
    return " ".join(sentences)


def _cell(gain: list[float] | None) -> str:
    return "" if gain is None else f"{gain[0]:+.3f} ({gain[1]:+.3f} to {gain[2]:+.3f})"


def _moved(gained: float, low: float, high: float) -> str:
    if low > 0:
        return f"rose by {gained:.3f}"
    return f"fell by {-gained:.3f}" if high < 0 else f"did not change by more than chance ({gained:+.3f})"


def write_page(rows: list[dict[str, Any]], page: Path = PAGE) -> None:
    """Each task's plot beside the page, and its table between its marks."""
    text = page.read_text()
    for task in TASKS:
        own = [row for row in rows if row["task"] == task]
        if own:
            points = [(row["epochs"], row["reward"], *row["interval"]) for row in own]
            (page.parent / f"curve-{task}.svg").write_text(plot([Line("reward", "#1a66b8", points)], "epochs"))
            shown = f"![Held-out reward by epoch](curve-{task}.svg)\n\n{table(own)}"
            text = between(text, f"<!-- curve: {task} -->", "<!-- end of the curve -->", shown)
    page.write_text(text)


def main() -> None:
    parser = hours_parser(__doc__, "var/curves")
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="default: all three")
    options = parser.parse_args()
    os.chdir(ROOT)
    until = time.monotonic() + 60 * options.minutes
    for task in options.tasks or TASKS:
        home = options.folder / task
        try:
            ended = time.monotonic() < until and run(task, home, until)
        finally:
            settings = load_settings(ROOT / "examples" / task / "settings.yaml", {"home": str(home)})
            if (home / "lake").is_dir() and (rows := rows_of(task, settings)):
                keep(task, rows)
        if not ended:
            break
    kept = read_rows(RESULTS)
    for task in TASKS:
        if rows := [row for row in kept if row["task"] == task]:
            first, last = rows[0], rows[-1]
            figure(
                f"curve_{task}", last["reward"], "reward", first["reward"], last["held_out_tasks"],
                epochs=last["epochs"], gained=last["gained"], since_shown=last["since_shown"],
            )  # fmt: skip
    write_page(kept)


if __name__ == "__main__":
    main()
