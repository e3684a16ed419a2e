"""Learning by rollouts: the calculator's held-out share by epoch, three ways, with equal rollouts.

    make bench-learning ARGS="--minutes 60"      # runs what is missing for so long, then stops where it can go on
    make bench-learning ARGS="--minutes 0"       # only the figures, the plot and the table of what there is

    ours         bench/learning.yaml: the calculator example
    transitions  Agent Lightning's way: every call a sample of its own, grouped with all calls of its task, none left out
                 (bench/transition_grpo.sql, `merge: per_call`, `min_spread: 0`); settings alone, nothing else differs
    stock        TRL's GRPOTrainer on the first call alone, sampling with transformers (bench/learning_trl.py); the second
                 call only repeats a number, and what counts as right is decided by the first

Each arm (of `--arms`) runs with the seeds `--seeds`, as many epochs as the settings say, in `var/learning/<key>/<arm>-<seed>`; an epoch that ends is a row
of bench/results/learning.jsonl, with what `lightning-flows why` finds of it, and what has a row is not run again. Rows of other
settings (`key`) stay, and count for nothing. Prints `learning_final` and `learning_rollouts_to_match`; draws docs/learning.svg and the table in docs/learning.md.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.learning_page import write_page
from bench.report import figure, say
from bench.runs import ROOT, findings, flow_command, hours_parser, read_rows, run_for
from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.report import epoch_rows
from lightning_core.files import write_atomic
from lightning_core.lake.manifest import stage_key
from lightning_core.settings_file import load_settings

SETTINGS = ROOT / "bench/learning.yaml"
RESULTS = ROOT / "bench/results/learning.jsonl"
ARMS = ("ours", "transitions", "stock")
# What makes Agent Lightning's scheme of a run's settings.
TRANSITIONS: dict[str, Any] = {
    "policies.0.advantages": "bench/transition_grpo.sql",
    "policies.0.merge": "per_call",
    "policies.0.min_spread": 0.0,
    "reward.assign": "discounted",
    "reward.gamma": 1.0,
}


def settings_of(arm: str, seed: int, folder: Path) -> tuple[Settings, dict[str, Any]]:
    """Settings of a run, and what they differ in from those of bench/learning.yaml."""
    changes: dict[str, Any] = {
        "home": str(folder / settings_key() / f"{arm}-{seed}"),  # with other settings, another run
        "seed": seed,
    }
    if arm == "transitions":
        changes |= TRANSITIONS
    return load_settings(SETTINGS, changes), changes


def settings_key() -> str:
    """Digest of what the settings say of learning; rows of another digest are another experiment's."""
    settings = load_settings(SETTINGS)
    policies = [p.model_dump(mode="json", exclude_defaults=True) for p in settings.policies]
    sampled = settings.rollout.model_dump(mode="json", include={"tasks_per_epoch", "group_size"})
    sampled["shuffle"] = settings.tasks.sampler == "shuffled"  # under the name that it had when the first runs began
    evaluation = settings.evaluation.model_dump(mode="json", exclude={"every"}, exclude_defaults=True)
    return stage_key(policies, sampled, evaluation, settings.epochs)  # over which the learning rate falls


def add_rows(new: list[dict[str, Any]], path: Path = RESULTS) -> None:
    """Store the rows of some runs in place of their older rows: a run that was begun again after its folder was lost has
    other rows, and halves of two runs are no run."""
    runs = {_run_of(row) for row in new}
    rows = [row for row in read_rows(path) if _run_of(row) not in runs] + new
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _run_of(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["key"], row["arm"], row["seed"]


def run(arm: str, seed: int, folder: Path, until: float) -> bool:
    """Go on with a run until it ends (True) or the time is up. Raises RuntimeError where it failed."""
    settings, changes = settings_of(arm, seed, folder)
    settings.home.mkdir(parents=True, exist_ok=True)
    if arm == "stock":
        command = [sys.executable, "-m", "bench.learning_trl", "--seed", str(seed), "--folder", str(settings.home)]
    else:
        command = flow_command("train", SETTINGS, changes)
    say(f"{arm}, seed {seed}: {settings.home}/run.log")
    try:
        return run_for(command, settings.home / "run.log", until, f"{arm}, seed {seed}")
    finally:
        add_rows(rows_of(arm, seed, folder))


def rows_of(arm: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """A row per evaluation that a run has come to; `epochs` trained before it, `rollouts` sampled for those."""
    settings, _ = settings_of(arm, seed, folder)
    common = {"key": settings_key(), "arm": arm, "seed": seed}
    if arm == "stock":
        return [common | row for row in read_rows(settings.home / "evaluations.jsonl")]
    run = Run(settings)
    rows = [row for row in epoch_rows(run) if row["held_out_right"] is not None]
    diagnosed = findings(run.lake, run.run)
    per_epoch = settings.rollout.tasks_per_epoch * settings.rollout.group_size
    return [
        common
        | {"epochs": row["epoch"] + 1, "rollouts": (row["epoch"] + 1) * per_epoch, "right": row["held_out_right"]}
        | {"tasks": row["held_out_tasks"], "findings": diagnosed.get(row["epoch"] + 1, [])}
        for row in rows
    ]


def curves(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Arm → a point per number of epochs, over the seeds that have come so far: mean, min, max, seeds, rollouts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS:
        own = [r for r in rows if r["arm"] == arm]
        points = []
        for epochs in sorted({r["epochs"] for r in own}):
            shares = [r["right"] for r in own if r["epochs"] == epochs]
            rollouts = next(r["rollouts"] for r in own if r["epochs"] == epochs)
            point = {"epochs": epochs, "rollouts": rollouts, "seeds": len(shares), "mean": mean(shares)}
            points.append(point | {"min": min(shares), "max": max(shares)})
        if points:
            found[arm] = points
    return found


def rollouts_to(level: float, points: list[dict[str, Any]]) -> float | None:
    """Rollouts after which a curve of means first reaches `level`, between two evaluations by the straight line."""
    before = None
    for point in points:
        if point["mean"] >= level:
            if before is None or point["mean"] == before["mean"]:
                return float(point["rollouts"])
            part = (level - before["mean"]) / (point["mean"] - before["mean"])
            return float(before["rollouts"] + part * (point["rollouts"] - before["rollouts"]))
        before = point
    return None


def print_figures(found: dict[str, list[dict[str, Any]]]) -> None:
    """The two figures, where ours and Agent Lightning's way have a curve."""
    if not {"ours", "transitions"} <= found.keys():
        say("no figures yet: `ours` and `transitions` each need a run")
        return
    ours, theirs, stock = found["ours"], found["transitions"], found.get("stock")
    seeds = min(ours[-1]["seeds"], theirs[-1]["seeds"])
    worse = [
        p["epochs"]
        for p in ours
        for q in [*theirs, *(stock or [])]
        if p["epochs"] == q["epochs"] and p["mean"] < q["mean"]
    ]
    figure(
        "learning_final", ours[-1]["mean"], "share", theirs[-1]["mean"], seeds,
        stock=stock[-1]["mean"] if stock else None, epochs=ours[-1]["epochs"], below_another_at=sorted(set(worse)),
    )  # fmt: skip
    needed = rollouts_to(theirs[-1]["mean"], ours)
    if needed is not None:
        figure("learning_rollouts_to_match", needed, "rollouts", theirs[-1]["rollouts"], seeds, smaller_is_better=True)
    else:
        say(f"ours does not reach the other's final {theirs[-1]['mean']:.1%}: no `learning_rollouts_to_match`")


def missing(
    rows: list[dict[str, Any]], seeds: list[int], epochs: int, arms: Sequence[str] = ARMS
) -> list[tuple[int, str]]:
    """(seed, arm) whose last evaluation has no row; a seed of every arm before the next seed."""
    there = {(r["seed"], r["arm"]) for r in rows if r["epochs"] == epochs}
    return [(seed, arm) for seed in seeds for arm in arms if (seed, arm) not in there]


def main() -> None:
    parser = hours_parser(__doc__, "var/learning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, help="those to run now")
    options = parser.parse_args()
    os.chdir(ROOT)
    until = time.monotonic() + 60 * options.minutes
    settings, _ = settings_of("ours", 0, options.folder)
    for seed, arm in missing(_current(), options.seeds, settings.epochs, options.arms):
        if time.monotonic() >= until or not run(arm, seed, options.folder, until):
            break
    rows = _current()
    still = missing(rows, options.seeds, settings.epochs)
    if still:
        say("missing: " + ", ".join(f"{arm} seed {seed}" for seed, arm in still))
    found = curves(rows)
    print_figures(found)
    write_page(found, still)


def _current() -> list[dict[str, Any]]:
    key = settings_key()
    return [row for row in read_rows(RESULTS) if row["key"] == key]


if __name__ == "__main__":
    main()
