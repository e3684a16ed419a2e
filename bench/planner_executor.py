"""What training either, both or none of two agents gives: examples/planner_executor, at equal rollouts, seed by seed.

    python -m bench.planner_executor --minutes 10      # goes on where a former call stopped; again until it says it is done

Rows are appended to bench/results/planner_executor.jsonl, one a (trained, seed), each when its run has ended; the table in
docs/several-agents.md is written from all of them. Every run rolls out the same tasks of its seed, as often; it ends with
held-out problems 33 to 64, greedy: the prompts and settings of the example were chosen on the first 32. `none` is the model
as it is, evaluated once. One vLLM serves all runs of a call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.report import say
from bench.runs import ROOT, add_row, read_rows
from docs.marks import between
from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.report import epoch_rows
from lightning_core.settings_file import load_settings
from lightning_flows.flows.prefect_api import prefect_api

ROWS = Path(__file__).with_name("results") / "planner_executor.jsonl"
PAGE = ROOT / "docs" / "several-agents.md"
VARIANTS: dict[str, list[str]] = {
    "none": [],
    "planner": ["planner"],
    "executor": ["executor"],
    "both": ["planner", "executor"],
}
BEGIN, END = "<!-- planner_executor -->", "<!-- /planner_executor -->"
# Student's t for a 95% interval of a mean of n seeds, by n.
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="no stage is begun after so many")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--home", type=Path, default=Path("var/planner_executor"))
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    if missing := _missing(arguments.seeds):
        with prefect_api(arguments.home):
            _run(missing, arguments.home, deadline)
    write_table(read_rows(ROWS))
    left = len(_missing(arguments.seeds))
    say("done" if not left else f"{left} runs are left; call it again")


def _missing(seeds: int) -> list[tuple[int, str]]:
    """(seed, trained) without a row. The model as it is answers greedily: it has one run, whatever the seeds."""
    wanted = [(seed, trained) for seed in range(seeds) for trained in VARIANTS if seed == 0 or VARIANTS[trained]]
    there = {(row["seed"], row["trained"]) for row in read_rows(ROWS)}
    return [one for one in wanted if one not in there]


def _run(missing: list[tuple[int, str]], home: Path, deadline: float) -> None:
    from lightning_core.epoch.services import running

    with running(Run(_settings(home, 0, "both")), say):
        for seed, trained in missing:
            settings = _settings(home, seed, trained)
            for stage in _stages(settings, trained):
                if time.monotonic() > deadline:
                    return
                stage()
            row = _row(settings, trained, seed)
            add_row(row, ROWS)
            say(json.dumps(row))


def _stages(settings: Settings, trained: str) -> Iterator[Any]:
    """The epochs that are still to be trained, then the evaluation."""
    from lightning_core.lake.lake import Lake
    from lightning_flows.flows.evaluate import evaluate
    from lightning_flows.flows.train_epoch import train_epoch

    epochs = 0 if trained == "none" else settings.epochs
    for number in range(Lake(settings.home).manifests.next_epoch(settings.run), epochs):
        yield lambda number=number: train_epoch(settings, number)
    yield lambda: evaluate(settings, epochs)


def _settings(home: Path, seed: int, trained: str) -> Settings:
    changes = {"home": str(home), "seed": seed, "run": f"{trained}-{seed}"}
    changes["tasks.evaluate"] = "examples/planner_executor/tasks.py:final_tasks"
    settings = load_settings(ROOT / "examples" / "planner_executor" / "settings.yaml", changes)
    return settings.training_only(VARIANTS[trained])


def _row(settings: Settings, trained: str, seed: int) -> dict[str, Any]:
    epochs = epoch_rows(Run(settings))
    training = [e for e in epochs if e["mean_reward"] is not None]
    held_out = epochs[-1]
    return {
        "trained": trained,
        "seed": seed,
        "rollouts": sum(e["rollouts"] for e in training),
        "held_out_tasks": held_out["held_out_tasks"],
        "right": round(held_out["held_out_right"], 4),
        "held_out_reward": round(held_out["held_out_reward"], 4),
        "reward_by_epoch": [round(e["mean_reward"], 4) for e in training],
        "versions": held_out["versions"],
        "seconds": round(sum(sum(e["seconds"].values()) for e in epochs)),
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: one line a variant, with the mean over its seeds and the 95% interval of that mean."""
    lines = [
        "| trained | seeds | rollouts a seed | held-out problems right | 95% interval | each seed | reward, first → last epoch |",
        "|---|---|---|---|---|---|---|",
    ]
    for trained in VARIANTS:
        own = sorted((row for row in found if row["trained"] == trained), key=lambda row: row["seed"])
        if not own:
            continue
        right = [row["right"] for row in own]
        rewards = [row["reward_by_epoch"] for row in own if row["reward_by_epoch"]]
        change = " → ".join(f"{statistics.mean(r[i] for r in rewards):.2f}" for i in (0, -1)) if rewards else ""
        lines.append(
            f"| {trained} | {len(own)} | {own[0]['rollouts']} | {statistics.mean(right):.1%} | {_interval(right)} | "
            f"{', '.join(f'{x:.1%}' for x in right)} | {change} |"
        )
    return "\n".join(lines)


def _interval(values: list[float]) -> str:
    if len(values) not in _T:
        return "–"
    mean = statistics.mean(values)
    half = _T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{max(mean - half, 0):.1%} to {min(mean + half, 1):.1%}"


def write_table(found: list[dict[str, Any]]) -> None:
    """Put the table between its marks in the page."""
    if not found or not PAGE.is_file():
        return
    PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(found)))


if __name__ == "__main__":
    main()
