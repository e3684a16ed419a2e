"""What Qwen2.5-Coder-0.5B-Instruct gains by RL on held-out tasks: the experiments of docs/tasks.md.

    LIGHTNING_DATA=… make bench-gains ARGS="--model FOLDER --minutes 150"   # runs what is missing for so long; the next call goes on
    LIGHTNING_DATA=… make bench-gains ARGS="spider --model FOLDER"          # of one experiment
    make bench-gains ARGS="--minutes 0"                                     # only the figures and the page of what there is

What was planned before the first run: examples/spider/README.md and examples/calc_x/README.md.
A run, of an arm with a seed, has a home of its own in `var/gains`, and is a row of bench/results/gains.jsonl: each held-out task with
its outcome before training and after, as the experiment's SQL tells them. Rows of other settings (`key`) stay, and count for nothing.
Prints `<experiment>_<arm>`: the share right after training beside that before, over all its runs; `gained` with its 95% interval
(bootstrap over databases, or over questions), `by_seed`, by kind of task, by outcome, and what else the SQL tells. Writes the tables.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

import duckdb

from bench.plot import Line, plot
from bench.report import figure, say
from bench.runs import ROOT, add_row, flow_command, hours_parser, read_rows, run_for, settings_key
from docs.marks import between
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.gain import some_answers
from lightning_core.lake import catalog
from lightning_core.lake.conversation import json_or_text
from lightning_core.settings_file import load_settings
from lightning_core.ui.words import short

RESULTS = ROOT / "bench/results/gains.jsonl"
PAGE = ROOT / "docs/tasks.md"
CURVE = Path(__file__).with_name("gains_curve.sql")
RESAMPLES = 10_000
COLOURS = ("#1a66b8", "#c05020", "#2a8a4a", "#8040a0", "#888888")
Task = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """`settings` and `outcomes` (SQL) are files of examples/; `seed_variable` is set to the seed, which tasks go by."""

    settings: Path
    outcomes: Path
    runs: list[tuple[str, int]]  # (arm, seed), in their order
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)  # what an arm changes in the settings
    seed_variable: str | None = None


EXAMPLES = ROOT / "examples"
EXPERIMENTS = {
    "spider": Experiment(
        EXAMPLES / "spider/folds.yaml",
        EXAMPLES / "spider/outcomes.sql",
        [("both", 0), ("shuffled", 0), ("both", 1), ("both", 2), ("writer", 0)],
        {
            "shuffled": {"policies.0.advantages": "examples/spider/shuffled.sql"},
            "writer": {"policies.0.agent_match": "^writer$"},
        },
        "SPIDER_FOLD",
    ),
    "calc_x": Experiment(
        EXAMPLES / "calc_x/steps.yaml",
        EXAMPLES / "calc_x/outcomes.sql",
        [("trained", 0), ("trained", 1), ("trained", 2)],
    ),
}


def run(name: str, arm: str, seed: int, model: Path, folder: Path, until: float) -> bool:
    """Go on with a run until it ends (True) or the time is up. Raises RuntimeError where it failed."""
    experiment = EXPERIMENTS[name]
    home = folder / f"{name}-{arm}-{seed}"
    changes = experiment.arms.get(arm, {}) | {"home": str(home), "seed": seed, "policies.0.model": str(model)}
    home.mkdir(parents=True, exist_ok=True)
    begun = home / "commit"
    if not begun.is_file():
        begun.write_text(subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip())
    if experiment.seed_variable:
        os.environ[experiment.seed_variable] = str(seed)
    log = home / "run.log"
    say(f"{name}, {arm}, seed {seed}: {log}")
    if not run_for(flow_command("train", experiment.settings, changes), log, until, f"{name}, {arm}, seed {seed}"):
        return False
    settings = load_settings(experiment.settings, changes)
    lake = Run(settings).lake
    trained = [each for each in lake.manifests.epochs(settings.run) if each.mode == "train"]
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        tasks = before_and_after(con, experiment.outcomes, settings.run, settings.epochs)
        curve = con.execute(CURVE.read_text(), {"run": settings.run}).fetchall()
        answers = some_answers(con, settings.run, 0, settings.epochs, most=5)
    row = {
        "key": settings_key(experiment.settings),
        "experiment": name,
        "arm": arm,
        "seed": seed,
        "commit": begun.read_text(),
    }
    row |= {"epochs": settings.epochs, "rollouts": sum(len(each.planned) for each in trained), "tasks": tasks}
    row |= {"curve": curve, "answers": [asdict(answer) for answer in answers]}
    add_row(row, RESULTS)
    return True


def before_and_after(con: duckdb.DuckDBPyConnection, outcomes: Path, run: str, last: int) -> list[Task]:
    """A task a row, `before` and `after` each with its outcome and what else the SQL's columns behind it tell."""
    asked = con.execute(outcomes.read_text(), {"run": run})
    columns = [column[0] for column in asked.description]
    found: defaultdict[str, Task] = defaultdict(dict)
    for values in asked.fetchall():
        row = dict(zip(columns, values, strict=True))
        epoch, task = row.pop("epoch"), {key: row.pop(key) for key in ("id", "unit", "kind")}
        if epoch in (0, last):
            found[task["id"]] |= task | {"before" if epoch == 0 else "after": row}
    return [task for task in found.values() if "before" in task and "after" in task]


def is_right(outcome: dict[str, Any]) -> bool:
    return bool(outcome["outcome"] == "right")


def gain(tasks: list[Task]) -> float:
    """Share of tasks right after, less that before."""
    return mean(is_right(task["after"]) - is_right(task["before"]) for task in tasks)


def interval(tasks: list[Task]) -> list[float]:
    """95% of the gain: percentiles over units drawn with replacement, each with all its tasks of all runs."""
    by: defaultdict[str, list[int]] = defaultdict(list)
    for task in tasks:
        by[task["unit"]].append(is_right(task["after"]) - is_right(task["before"]))
    sums = [(sum(gains), len(gains)) for gains in by.values()]
    draw, gains = random.Random(0), []
    for _ in range(RESAMPLES):
        drawn = draw.choices(sums, k=len(sums))
        gains.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    gains.sort()
    return [gains[int(RESAMPLES * 0.025)], gains[int(RESAMPLES * 0.975) - 1]]


def right(tasks: list[Task], when: str) -> float:
    return mean(is_right(task[when]) for task in tasks)


def facts(tasks: list[Task]) -> dict[str, list[float]]:
    """What the SQL tells of each task beside its outcome: means before and after, of those tasks of which it is known."""
    names = [name for name in tasks[0]["before"] if name != "outcome"]
    return {name: [_mean(tasks, when, name) for when in ("before", "after")] for name in names}


def _mean(tasks: list[Task], when: str, name: str) -> float:
    known = [float(task[when][name]) for task in tasks if task[when][name] is not None]
    return mean(known) if known else 0.0


def arms_of(name: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Arm → its runs, in the order of the plan."""
    own = [row for row in rows if row["experiment"] == name]
    return {
        arm: runs
        for arm in dict.fromkeys(arm for arm, _ in EXPERIMENTS[name].runs)
        if (runs := sorted((row for row in own if row["arm"] == arm), key=lambda row: row["seed"]))
    }


def print_figures(name: str, rows: list[dict[str, Any]]) -> None:
    for arm, runs in arms_of(name, rows).items():
        tasks = [task for row in runs for task in row["tasks"]]
        by_kind = {kind: [t for t in tasks if t["kind"] == kind] for kind in sorted({t["kind"] for t in tasks})}
        figure(
            f"{name}_{arm}", right(tasks, "after"), "share", right(tasks, "before"), len(tasks), gained=gain(tasks),
            interval=interval(tasks), seeds=[row["seed"] for row in runs], by_seed=[gain(row["tasks"]) for row in runs],
            by_kind={kind: [right(own, when) for when in ("before", "after")] for kind, own in by_kind.items()},
            before=Counter(task["before"]["outcome"] for task in tasks), after=Counter(task["after"]["outcome"] for task in tasks),
            facts=facts(tasks),
        )  # fmt: skip


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per run, one for the runs of an arm together, then outcomes and kinds of the first arm's tasks."""
    lines = [
        "| arm | seed | tasks | right before | after | gained (95%) | rollouts | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    arms = arms_of(name, rows)
    for arm, runs in arms.items():
        for row in runs:
            lines.append(_line(arm, str(row["seed"]), row["tasks"], str(row["rollouts"]), row["commit"]))
        if len(runs) > 1:
            lines.append(_line(arm, "all", [task for row in runs for task in row["tasks"]], "", ""))
    arm, runs = next(iter(arms.items()))
    tasks = [task for row in runs for task in row["tasks"]]
    lines += ["", f"| of `{arm}` | before | after |", "|---|---|---|"]
    for outcome in sorted({task[when]["outcome"] for task in tasks for when in ("before", "after")}):
        shares = [mean(task[when]["outcome"] == outcome for task in tasks) for when in ("before", "after")]
        lines.append(f"| outcome: {outcome} | {shares[0]:.1%} | {shares[1]:.1%} |")
    for kind in sorted({task["kind"] for task in tasks}):
        own = [task for task in tasks if task["kind"] == kind]
        lines.append(f"| right, of {len(own)} {kind} | {right(own, 'before'):.1%} | {right(own, 'after'):.1%} |")
    for fact, (before, after) in facts(tasks).items():
        lines.append(f"| {fact.replace('_', ' ')} | {before:.2f} | {after:.2f} |")
    return "\n".join(lines)


def draw(name: str, rows: list[dict[str, Any]]) -> str:
    """Draw docs/gain-<name>.svg, a line a run; returns the Markdown that shows it, empty where no row has a curve."""
    runs = [run for own in arms_of(name, rows).values() for run in own if run.get("curve")]
    if not runs:
        return ""
    lines = [
        Line(f"{run['arm']} {run['seed']}", colour, [tuple(point) for point in run["curve"]])
        for run, colour in zip(runs, cycle(COLOURS), strict=False)
    ]
    (PAGE.parent / f"gain-{name}.svg").write_text(plot(lines, "rollouts"))
    return f"![Reward of the training rollouts, four epochs a point, with a 95% band over groups](gain-{name}.svg)\n\n"


def answers(name: str, rows: list[dict[str, Any]]) -> str:
    """Return Markdown: five held-out tasks before and after, of the newest run of the first arm that has some."""
    runs = [run for run in next(iter(arms_of(name, rows).values())) if run.get("answers")]
    if not runs:
        return ""
    lines = [
        f"Five held-out tasks of `{runs[-1]['arm']}`, seed {runs[-1]['seed']}, chosen by sql/outcome/answers.sql:",
        "",
    ]
    for answer in runs[-1]["answers"]:
        lines.append(f"- {short(answer['task'], 200)}")
        for when in ("before", "after"):
            answered = answer[f"error_{when}"] or json_or_text(answer[f"output_{when}"])
            shown = short(answered, 200).replace("`", "'")  # which would end Markdown's code
            lines.append(f"  - {when}, reward {answer[f'reward_{when}']:g}: `{shown}`")
    return "\n\n" + "\n".join(lines)


def _line(arm: str, seed: str, tasks: list[Task], rollouts: str, commit: str) -> str:
    low, high = interval(tasks)
    shares = f"{right(tasks, 'before'):.1%} | {right(tasks, 'after'):.1%}"
    return f"| {arm} | {seed} | {len(tasks)} | {shares} | {gain(tasks):+.3f} ({low:+.3f} to {high:+.3f}) | {rollouts} | {commit} |"


def main() -> None:
    parser = hours_parser(__doc__, "var/gains")
    parser.add_argument("experiments", nargs="*", choices=[*EXPERIMENTS, []], help="default: all, one after another")
    parser.add_argument("--model", type=Path, help="folder of Qwen2.5-Coder-0.5B-Instruct")
    options = parser.parse_args()
    os.chdir(ROOT)
    until = time.monotonic() + 60 * options.minutes
    for name in options.experiments or EXPERIMENTS:
        there = {(row["arm"], row["seed"]) for row in _current(name)}
        for arm, seed in EXPERIMENTS[name].runs:
            if (arm, seed) not in there and time.monotonic() < until:
                if options.model is None:
                    parser.error(f"{name}, {arm}, seed {seed} was not run yet: --model says where the model is")
                if not run(name, arm, seed, options.model.absolute(), options.folder, until):
                    break
        if rows := _current(name):
            print_figures(name, rows)
            shown = draw(name, rows) + table(name, rows) + answers(name, rows)
            PAGE.write_text(between(PAGE.read_text(), f"<!-- gains: {name} -->", "<!-- end of the gains -->", shown))


def _current(name: str) -> list[dict[str, Any]]:
    key = settings_key(EXPERIMENTS[name].settings)
    return [row for row in read_rows(RESULTS) if (row["experiment"], row["key"]) == (name, key)]


if __name__ == "__main__":
    main()
