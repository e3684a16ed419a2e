"""Algorithms against each other: the calculator example trained by each, on its 192 held-out tasks, with the same seeds.

    make bench-algorithms ARGS="--minutes 60"     # runs what is missing for so long; the next call goes on
    make bench-algorithms ARGS="--minutes 0"      # only the figures of what there is

Each algorithm (of `--algorithms`) runs with the seeds `--seeds` in `var/algorithms/<key>/<algorithm>-<seed>`; its last evaluation
is a row of bench/results/algorithms.jsonl, with `right` of each held-out task. Rows of other settings (`key`) stay, and count for nothing.
Prints `<algorithm>_to_grpo`: the mean share that is right beside that of `grpo`, the difference, task by task and seed by seed,
with its 95% interval over tasks (a task's seeds are averaged first), and `by_seed`.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.learning import read_rows
from bench.report import figure, say
from bench.runs import ROOT, add_row, flow_command, hours_parser, run_for, settings_key
from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.lake import catalog
from lightning_core.settings_file import load_settings

SETTINGS = ROOT / "examples/calculator/settings.yaml"
RESULTS = ROOT / "bench/results/algorithms.jsonl"
ALGORITHMS: dict[str, dict[str, Any]] = {"grpo": {}, "ppo": {"policies.0.algorithm": "ppo"}}
BASELINE = "grpo"
_LAST = """
    SELECT task_id, avg(success::INTEGER) FROM rollouts
    WHERE run = $run AND mode = 'evaluate' AND epoch = $epoch AND state = 'counts' GROUP BY task_id ORDER BY task_id
"""


def settings_of(algorithm: str, seed: int, folder: Path) -> tuple[Settings, dict[str, Any]]:
    """Settings of a run, and what they differ in from the example's."""
    changes = ALGORITHMS[algorithm] | {
        "home": str(folder / settings_key(SETTINGS) / f"{algorithm}-{seed}"),
        "seed": seed,
    }
    return load_settings(SETTINGS, changes), changes


def run(algorithm: str, seed: int, folder: Path, until: float) -> bool:
    """Go on with a run until it ends (True) or the time is up. Raises RuntimeError where it failed."""
    settings, changes = settings_of(algorithm, seed, folder)
    settings.home.mkdir(parents=True, exist_ok=True)
    log, name = settings.home / "run.log", f"{algorithm}, seed {seed}"
    say(f"{name}: {log}")
    if not run_for(flow_command("train", SETTINGS, changes), log, until, name):
        return False
    lake = Run(settings).lake
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        right = dict(con.execute(_LAST, {"run": settings.run, "epoch": settings.epochs}).fetchall())
    row = {
        "key": settings_key(SETTINGS),
        "algorithm": algorithm,
        "seed": seed,
        "epochs": settings.epochs,
        "share": mean(right.values()),
        "right": right,
    }
    add_row(row, RESULTS)
    return True


def print_figures(rows: list[dict[str, Any]]) -> None:
    by: dict[tuple[str, int], dict[str, Any]] = {(row["algorithm"], row["seed"]): row for row in rows}
    for algorithm in ALGORITHMS:
        seeds = sorted(seed for name, seed in by if name == algorithm and (BASELINE, seed) in by)
        if algorithm == BASELINE or not seeds:
            continue
        pairs = [(by[algorithm, seed], by[BASELINE, seed]) for seed in seeds]
        by_task = [
            mean(ours["right"][task] - its["right"][task] for ours, its in pairs) for task in pairs[0][0]["right"]
        ]
        half = 1.96 * stdev(by_task) / math.sqrt(len(by_task))
        figure(
            f"{algorithm}_to_{BASELINE}", mean(ours["share"] for ours, _ in pairs), "share",
            mean(its["share"] for _, its in pairs), len(seeds), difference=mean(by_task),
            interval=[mean(by_task) - half, mean(by_task) + half], tasks=len(by_task),
            by_seed=[ours["share"] - its["share"] for ours, its in pairs],
        )  # fmt: skip


def main() -> None:
    parser = hours_parser(__doc__, "var/algorithms")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS, help="those to run now"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    until = time.monotonic() + 60 * options.minutes
    there = {(row["algorithm"], row["seed"]) for row in _current()}
    wanted = [(algorithm, seed) for seed in options.seeds for algorithm in options.algorithms]
    for algorithm, seed in wanted:
        if (algorithm, seed) in there:
            continue
        if time.monotonic() >= until or not run(algorithm, seed, options.folder, until):
            break
    print_figures(_current())


def _current() -> list[dict[str, Any]]:
    key = settings_key(SETTINGS)
    return [row for row in read_rows(RESULTS) if row["key"] == key]


if __name__ == "__main__":
    main()
