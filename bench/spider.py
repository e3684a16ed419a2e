"""Qwen2.5-Coder-0.5B-Instruct trained on ten of Spider's fifteen databases and tested on the other five, in three folds.

    LIGHTNING_DATA=… make bench-spider ARGS="--model FOLDER --minutes 150"     # runs what is missing for so long; the next call goes on
    make bench-spider ARGS="--minutes 0"                                       # only the figures and the page of what there is

The runs, one after another: `both` (examples/spider/folds.yaml) on the folds 0, 1, 2; `shuffled` on fold 0, a control whose rewards
are shuffled within groups (examples/spider/shuffled.sql); `writer` on fold 0, where the rewriter's calls train nothing. A fold's
number is its seed. What was planned before the first of them: examples/spider/README.md.
Each runs in `var/spider-folds/<arm>-<fold>`. Each held-out question is a row of bench/results/spider.jsonl, with its outcome before and
after (examples/spider/outcomes.sql). Rows of other settings (`key`) stay, and count for nothing.
Prints `spider_<arm>`: the share right after training beside that before, over all folds that were run, `gained` with its 95%
interval (bootstrap over databases), `by_fold`, and by kind of question and outcome. Writes the table of docs/tasks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from bench.learning import read_rows
from bench.report import figure, say
from bench.runs import ROOT, flow_command, run_for, settings_key
from docs.marks import between
from lightning_core.epoch.epoch import Run
from lightning_core.files import write_atomic
from lightning_core.lake import catalog
from lightning_core.settings_file import load_settings

SETTINGS = ROOT / "examples/spider/folds.yaml"
OUTCOMES = ROOT / "examples/spider/outcomes.sql"
RESULTS = ROOT / "bench/results/spider.jsonl"
PAGE = ROOT / "docs/tasks.md"
ARMS: dict[str, dict[str, Any]] = {
    "both": {},
    "shuffled": {"policies.0.advantages": "examples/spider/shuffled.sql"},
    "writer": {"policies.0.agent_match": "^writer$"},
}
RUNS = [("both", 0), ("both", 1), ("both", 2), ("shuffled", 0), ("writer", 0)]
RESAMPLES = 10_000


def run(arm: str, fold: int, model: Path, folder: Path, until: float) -> bool:
    """Go on with a run until it ends (True) or the time is up. Raises RuntimeError where it failed."""
    home = folder / f"{arm}-{fold}"
    changes = ARMS[arm] | {"home": str(home), "seed": fold, "policies.0.model": str(model)}
    home.mkdir(parents=True, exist_ok=True)
    begun = home / "commit"
    if not begun.is_file():
        begun.write_text(subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip())
    os.environ["SPIDER_FOLD"] = str(fold)
    log, name = home / "run.log", f"{arm}, fold {fold}"
    say(f"{name}: {log}")
    if not run_for(flow_command("train", SETTINGS, changes), log, until, name):
        return False
    settings = load_settings(SETTINGS, changes)
    lake = Run(settings).lake
    rollouts = sum(len(each.planned) for each in lake.manifests.epochs(settings.run) if each.mode == "train")
    lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        asked = con.execute(OUTCOMES.read_text(), {"run": settings.run}).fetchall()
    common = {"key": settings_key(SETTINGS), "arm": arm, "fold": fold, "commit": begun.read_text()}
    common |= {"epochs": settings.epochs, "rollouts": rollouts}
    rows = [common | pair for pair in pairs(asked, settings.epochs)]
    write_atomic(RESULTS, "".join(json.dumps(each) + "\n" for each in [*read_rows(RESULTS), *rows]).encode())
    return True


def pairs(asked: list[tuple[int, str, str, str, str]], last: int) -> list[dict[str, Any]]:
    """The rows of outcomes.sql as a row a question, for the evaluations before training and after `last` epochs."""
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for epoch, database, question, kind, outcome in asked:
        if epoch in (0, last):
            found[question] |= {"db_id": database, "id": question, "kind": kind}
            found[question]["before" if epoch == 0 else "after"] = outcome
    return [row for row in found.values() if "before" in row and "after" in row]


def gain(rows: list[dict[str, Any]]) -> float:
    """Share of questions right after, less that before."""
    return mean((row["after"] == "right") - (row["before"] == "right") for row in rows)


def interval(rows: list[dict[str, Any]]) -> list[float]:
    """95% of the gain: percentiles over databases drawn with replacement, with all their questions."""
    by = defaultdict(list)
    for row in rows:
        by[row["db_id"]].append(row)
    draw, databases = random.Random(0), list(by.values())
    gains = sorted(
        gain([row for one in draw.choices(databases, k=len(databases)) for row in one]) for _ in range(RESAMPLES)
    )
    return [gains[int(RESAMPLES * 0.025)], gains[int(RESAMPLES * 0.975) - 1]]


def share(rows: list[dict[str, Any]], when: str, outcome: str = "right") -> float:
    return mean(row[when] == outcome for row in rows)


def print_figures(rows: list[dict[str, Any]]) -> None:
    for arm in ARMS:
        if own := [row for row in rows if row["arm"] == arm]:
            folds = sorted({row["fold"] for row in own})
            kinds = sorted({row["kind"] for row in own})
            figure(
                f"spider_{arm}", share(own, "after"), "share", share(own, "before"), len(own), gained=gain(own),
                interval=interval(own), by_fold=[gain([row for row in own if row["fold"] == fold]) for fold in folds],
                by_kind={kind: [share([r for r in own if r["kind"] == kind], when) for when in ("before", "after")] for kind in kinds},
                before=Counter(row["before"] for row in own), after=Counter(row["after"] for row in own),
            )  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per run, one for the folds together, and what became of the questions by kind."""
    lines = [
        "| run | fold | questions | right before | after | gained (95%) | did not run, before → after | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, fold in [*RUNS[:3], ("both", None), *RUNS[3:]]:
        own = [row for row in rows if row["arm"] == arm and fold in (row["fold"], None)]
        if not own or (fold is None and len({row["fold"] for row in own}) < 2):
            continue
        low, high = interval(own)
        failed = " → ".join(f"{share(own, when, 'does not run'):.0%}" for when in ("before", "after"))
        commit = "" if fold is None else own[0]["commit"]
        lines.append(
            f"| {arm} | {'all' if fold is None else fold} | {len(own)} | {share(own, 'before'):.1%} | {share(own, 'after'):.1%} | "
            f"{gain(own):+.3f} ({low:+.3f} to {high:+.3f}) | {failed} | {commit} |"
        )
    lines += ["", "| of `both`: kind of question | questions | right before | after |", "|---|---|---|---|"]
    for kind in ("one table", "join", "nested"):
        if own := [row for row in rows if row["arm"] == "both" and row["kind"] == kind]:
            lines.append(f"| {kind} | {len(own)} | {share(own, 'before'):.1%} | {share(own, 'after'):.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop after so long; the next call goes on")
    parser.add_argument("--folder", type=Path, default=ROOT / "var/spider-folds")
    options = parser.parse_args()
    os.chdir(ROOT)
    until = time.monotonic() + 60 * options.minutes
    for arm, fold in RUNS:
        if any((row["arm"], row["fold"]) == (arm, fold) for row in _current()):
            continue
        if time.monotonic() >= until:
            break
        if options.model is None:
            parser.error(f"{arm}, fold {fold} was not run yet: --model says where the model is")
        if not run(arm, fold, options.model.absolute(), options.folder, until):
            break
    print_figures(_current())
    if _current():
        PAGE.write_text(between(PAGE.read_text(), "<!-- folds -->", "<!-- end of the folds -->", table(_current())))


def _current() -> list[dict[str, Any]]:
    return [row for row in read_rows(RESULTS) if row["key"] == settings_key(SETTINGS)]


if __name__ == "__main__":
    main()
