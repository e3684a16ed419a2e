"""What each part is worth: the calculator example trained with one thing different, on its 192 held-out tasks, with the same seeds.

    make bench-arms ARGS="--minutes 60"     # runs what is missing for so long; the next call goes on
    make bench-arms ARGS="--minutes 0"      # only the figures, and the table of docs/learning.md, of what there is

Each arm (of `--arms`) runs with the seeds `--seeds` in `var/arms/<key>/<arm>-<seed>`; its last evaluation is a row of
bench/results/arms.jsonl, with `right` of each held-out task and `rollouts`, how many it trained by. Rows of other settings
(`key`) stay, and count for nothing. Prints `<arm>_to_grpo`: the mean share that is right beside that of `grpo`, the difference,
task by task and seed by seed, with its 95% interval over tasks (a task's seeds are averaged first), and `by_seed`.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.learning import TRANSITIONS
from bench.report import figure, say
from bench.runs import ROOT, add_row, flow_command, hours_parser, read_rows, run_for, settings_key
from docs.marks import between
from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.lake import catalog
from lightning_core.settings_file import load_settings

SETTINGS = ROOT / "examples/calculator/settings.yaml"
RESULTS = ROOT / "bench/results/arms.jsonl"
PAGE = ROOT / "docs/learning.md"
BEGIN, END = "<!-- table: bench/arms.py -->", "<!-- end of the arms -->"
# Arm → what it changes in the example's settings, and in words.
ARMS: dict[str, tuple[dict[str, Any], str]] = {
    "grpo": ({}, "the example as it is"),
    "ppo": ({"policies.0.algorithm": "ppo"}, "`algorithm: ppo`"),
    "transitions": (TRANSITIONS, "the scheme of Agent Lightning, above"),
    "per_call": ({"policies.0.merge": "per_call"}, "`merge: per_call`: each call is a training row of its own"),
    "any_spread": ({"policies.0.min_spread": 0.0}, "`min_spread: 0`: groups train however close their rewards lie"),
    "shuffled": ({"tasks.sampler": "shuffled"}, "`sampler: shuffled`: kinds that are still wrong come no more often"),
    "replaced": ({"rollout.replaced_groups": 28}, "`replaced_groups: 28`: up to 28 groups that teach nothing are replaced"),
    "air": ({"reward.air": "default"}, "`air: default`: a failing tool and a truncated reply cost a little"),
}  # fmt: skip
BASELINE = "grpo"
_LAST = """
    SELECT task_id, avg(success::INTEGER) FROM rollouts
    WHERE run = $run AND mode = 'evaluate' AND epoch = $epoch AND state = 'counts' GROUP BY task_id ORDER BY task_id
"""
_ROLLOUTS = "SELECT count(*) FROM rollouts WHERE run = $run AND mode = 'train'"

Rows = dict[tuple[str, int], dict[str, Any]]  # by arm and seed


def settings_of(arm: str, seed: int, folder: Path) -> tuple[Settings, dict[str, Any]]:
    """Settings of a run, and what they differ in from the example's."""
    changes = ARMS[arm][0] | {"home": str(folder / settings_key(SETTINGS) / f"{arm}-{seed}"), "seed": seed}
    return load_settings(SETTINGS, changes), changes


def run(arm: str, seed: int, folder: Path, until: float) -> bool:
    """Go on with a run until it ends (True) or the time is up. Raises RuntimeError where it failed."""
    settings, changes = settings_of(arm, seed, folder)
    settings.home.mkdir(parents=True, exist_ok=True)
    log, name = settings.home / "run.log", f"{arm}, seed {seed}"
    say(f"{name}: {log}")
    if not run_for(flow_command("train", SETTINGS, changes), log, until, name):
        return False
    lake = Run(settings).lake
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        right = dict(con.execute(_LAST, {"run": settings.run, "epoch": settings.epochs}).fetchall())
        (rollouts,) = con.execute(_ROLLOUTS, {"run": settings.run}).fetchall()[0]
    row = {
        "key": settings_key(SETTINGS),
        "arm": arm,
        "seed": seed,
        "epochs": settings.epochs,
        "rollouts": rollouts,
        "share": mean(right.values()),
        "right": right,
    }
    add_row(row, RESULTS)
    return True


def compared(arm: str, by: Rows) -> dict[str, Any] | None:
    """An arm beside the baseline, over the seeds that both have; None where there is none."""
    seeds = sorted(seed for name, seed in by if name == arm and (BASELINE, seed) in by)
    if not seeds:
        return None
    pairs = [(by[arm, seed], by[BASELINE, seed]) for seed in seeds]
    by_task = [mean(ours["right"][task] - its["right"][task] for ours, its in pairs) for task in pairs[0][0]["right"]]
    half = 1.96 * stdev(by_task) / math.sqrt(len(by_task))
    return {
        "share": mean(ours["share"] for ours, _ in pairs),
        "baseline": mean(its["share"] for _, its in pairs),
        "difference": mean(by_task),
        "interval": [mean(by_task) - half, mean(by_task) + half],
        "tasks": len(by_task),
        "by_seed": [ours["share"] - its["share"] for ours, its in pairs],
    }


def print_figures(by: Rows) -> None:
    for arm in ARMS:
        found = compared(arm, by)
        if arm != BASELINE and found is not None:
            share, baseline = found.pop("share"), found.pop("baseline")
            figure(f"{arm}_to_{BASELINE}", share, "share", baseline, len(found["by_seed"]), **found)


def table(by: Rows) -> str:
    """A line per arm that has a run: right (each seed), its difference to the baseline, rollouts trained by."""
    lines = [f"| what differs | right (seeds) | difference to `{BASELINE}` (95%) | rollouts |", "|---|---|---|---|"]
    for arm, (_, words) in ARMS.items():
        own = [row for (name, _), row in sorted(by.items()) if name == arm]
        if not own:
            continue
        shares, found = [row["share"] for row in own], compared(arm, by)
        against = ""
        if arm != BASELINE and found is not None:
            low, high = found["interval"]
            against = f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        rollouts = mean(row["rollouts"] for row in own)
        each = ", ".join(f"{share:.1%}" for share in shares)
        lines.append(f"| {arm}: {words} | {mean(shares):.1%} ({each}) | {against} | {rollouts:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = hours_parser(__doc__, "var/arms")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="those to run now")
    options = parser.parse_args()
    os.chdir(ROOT)
    until = time.monotonic() + 60 * options.minutes
    there = _current()
    for arm, seed in [(arm, seed) for seed in options.seeds for arm in options.arms]:
        if (arm, seed) in there:
            continue
        if time.monotonic() >= until or not run(arm, seed, options.folder, until):
            break
    by = _current()
    print_figures(by)
    PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(by)))


def _current() -> Rows:
    key = settings_key(SETTINGS)
    return {(row["arm"], row["seed"]): row for row in read_rows(RESULTS) if row["key"] == key}


if __name__ == "__main__":
    main()
