"""Every page of `lightning-flows ui` over a home of 10,000 rollouts, asked of the application itself, without a socket.

The home: a run of eight training epochs (125 tasks in groups of 8), an evaluation before, between and after them on 400 tasks, two
calls a rollout with their messages and tokens, a tool, a reward; a half learned by the end. Its epochs are derived by the SQL of a real run.

    page_warm_ms   the slowest page, each the median of its rounds; baseline: what is allowed. `pages`: each, `best`: its fastest round,
                   `cpu`: processor time of that round (of all threads), which others' work on the machine disturbs least
    page_cold_ms   the slowest page, each asked for the first time of a server that has opened the catalog
    page_open_ms   what a server does once at its start, and beside its pages whenever the catalog was made anew: open it, compute what
                   many figures read, diagnose the newest run; baseline: the two seconds that a diagnosis may take

    .venv/bin/python -m bench.page [--quick] [--rounds 5] [--home FOLDER]

`--home`: make the home there and keep it; one that is there already is asked, whatever made it.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import random
import re
import statistics
import tempfile
import threading
import time
from pathlib import Path

from starlette.testclient import TestClient

from bench.report import figure, say
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake import catalog
from lightning_core.lake.manifest import EpochManifest
from lightning_core.ui.app import PREPARES, app, place
from lightning_core.ui.figures import Figures
from lightning_core.ui.guard import Allowed
from tests.lake_maker import Attempt, derived, settings, trained

EPOCHS, GROUPS, GROUP, HELD_OUT, EVALUATED = 8, 125, 8, 400, (0, 2, 4, 6, 8)
_ALLOWED_MS, _OPENED_MS = 300.0, 2000.0
_RESPONSE = 60  # tokens
_COLD_ROUNDS = 3


def make(home: Path, groups: int, held_out: int) -> None:
    """Write the home of a run as it would have left it."""
    drawn = random.Random(0)
    attempts: list[Attempt] = []
    for epoch in range(EPOCHS):
        for group in range(groups):
            task = f"task-{group + groups * (epoch % 2):04d}"
            attempts += [
                _rollout(
                    f"run.{epoch}.{task}.{n}", epoch, "train", task, f"run.{epoch}.{task}", len(attempts) + n, drawn
                )
                for n in range(GROUP)
            ]
    for epoch in EVALUATED:
        for number in range(held_out):
            task = f"held-{number:04d}"
            name = f"run.eval{epoch}.{task}"
            attempts.append(_rollout(f"{name}.0", epoch, "evaluate", task, name, len(attempts), drawn))
    lake, first = derived(home, [row for attempt in attempts for row in attempt.rows], agent_match="writer")
    for mode, numbers in (("train", range(EPOCHS)), ("evaluate", EVALUATED)):
        for number in numbers:
            manifest = EpochManifest(
                run="run", epoch=number, mode=mode, opened_offset=0, sealed_offset=first.sealed_offset
            )
            manifest.versions = {"policy": f"v{number:04d}"}
            opened = Epoch(settings(home, agent_match="writer"), manifest)
            derive(opened, "key")
            opened.save()
            if mode == "train":
                trained(lake, number)
    lake.rebuild_catalog()


def _rollout(name: str, epoch: int, mode: str, task: str, group: str, number: int, drawn: random.Random) -> Attempt:
    """A planner and a writer who call once each, and a tool; right as often as the epoch is far."""
    made = Attempt(name, "a", group, start=1000.0 + number)
    question = f"What does {task} come to, if every number in it is doubled and what is odd is left out? " * 4
    right = drawn.random() < 0.1 + 0.8 * (epoch / EPOCHS) * (int(task[-4:]) % 10) / 10
    made.root(
        mode=mode, epoch=epoch, task_id=task,
        task=json.dumps({"question": question, "answer": task[-4:]}), output=json.dumps({"answer": task[-4:] if right else "0"}),
    )  # fmt: skip
    planner = made.agent("planner", (0.1, 0.9))
    writer = made.agent("writer", (0.4, 0.8), planner)
    asked = [{"role": "system", "content": "Think in steps. " * 20}, {"role": "user", "content": question}]
    for agent, at in ((planner, 0.2), (writer, 0.5)):
        said = [{"role": "assistant", "content": "so it is four and then some " * 8}]
        made.call(
            [drawn.randrange(49_000) for _ in range(3 * _RESPONSE)], [drawn.randrange(49_000) for _ in range(_RESPONSE)],
            (at, at + 0.1), agent, input_tokens=3 * _RESPONSE, output_tokens=_RESPONSE, policy_version=f"v{epoch:04d}",
            input_messages=json.dumps(asked), output_messages=json.dumps(said),
        )  # fmt: skip
        asked = [*asked, *said]
    made.span(
        "search", (0.35, 0.38), planner, op="tool", tool_name="search", tool_arguments=task, tool_result=task[-4:]
    )
    made.reward(float(right))
    return made


def addresses(home: Path) -> dict[str, str]:
    """Name → address of a page of each kind, of the newest run."""
    with catalog.connect(home / "lake") as con:
        runs = con.execute("SELECT run FROM rollouts WHERE run IS NOT NULL GROUP BY run ORDER BY max(started) DESC")
        (run,) = runs.fetchall()[0]
        chosen = con.execute(
            "SELECT rollout_id, group_id, task_id, epoch FROM rollouts WHERE run = ? AND mode = 'train' AND state = 'counts' ORDER BY ALL LIMIT 1",
            [run],
        )
        ((rollout, group, task, epoch),) = chosen.fetchall()
        tasks = con.execute("SELECT min(task_id) FROM rollouts WHERE run = ? AND mode = 'evaluate'", [run]).fetchall()
    held_out = {"held-out task": place("task", run, tasks[0][0])} if tasks[0][0] else {}
    compared = {"compare": place("compare", run)} if tasks[0][0] else {}
    return (
        {
            "runs": "/",
            "run": place("", run),
            "tasks": place("tasks", run),
            "held-out tasks": place("tasks", run, mode="evaluate"),
            "task": place("task", run, task),
            "rollouts": place("rollouts", run),
            "worst rollouts": place("rollouts", run, sort="worst", words="four"),
            "group": place("group", run, group),
            "rollout": place("rollout", run, rollout, epoch=epoch),
            "raw spans": place("rollout", run, rollout, epoch=epoch, raw=1),
            "policies": "/policies",
            "search": f"/search?q={task[:-1]}",
            "ask": "/ask",
        }
        | held_out
        | compared
    )


def ask(page: TestClient, address: str) -> tuple[float, float]:
    """Milliseconds until a page is there, and those of processors. Raises RuntimeError for one that is not."""
    began, cpu = time.perf_counter(), time.process_time()
    answer = page.get(address)
    took = 1000 * (time.perf_counter() - began), 1000 * (time.process_time() - cpu)
    if answer.status_code != 200:
        raise RuntimeError(
            f"{address}: {answer.status_code} {html.unescape(re.sub('<[^>]*>', ' ', answer.text))[-300:]}"
        )
    return took


def _opening(home: Path) -> tuple[float, float]:
    """Milliseconds that a server's start takes before its first page, and those of processors."""
    figures, began, cpu = Figures(home / "lake"), time.perf_counter(), time.process_time()
    figures.prepare()
    took = 1000 * (time.perf_counter() - began), 1000 * (time.process_time() - cpu)
    figures.close()
    return took


def _opened(home: Path) -> TestClient:
    return TestClient(app(home, Allowed(frozenset())), base_url="http://127.0.0.1")


def measure(home: Path, rounds: int) -> None:
    """Open the catalog, then ask every page: cold, each of an application of its own, then warm."""
    opened = [_opening(home) for _ in range(_COLD_ROUNDS)]
    asked = addresses(home)
    cold: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    for name, address in [*asked.items()] * _COLD_ROUNDS:
        with _opened(home) as page:
            for thread in threading.enumerate():
                if thread.name == PREPARES:
                    thread.join()
            cold[name].append(ask(page, address))
    with _opened(home) as page:
        for address in asked.values():
            ask(page, address)
        warm = {name: [ask(page, address) for _ in range(rounds)] for name, address in asked.items()}
    with catalog.connect(home / "lake") as con:
        ((rollouts,),) = con.execute("SELECT count(*) FROM rollouts").fetchall()
    _figure("page_warm_ms", warm, rollouts)
    _figure("page_cold_ms", cold, rollouts)
    _figure("page_open_ms", {"open": opened}, rollouts, _OPENED_MS)


def _figure(
    name: str, pages: dict[str, list[tuple[float, float]]], rollouts: int, allowed: float = _ALLOWED_MS
) -> None:
    medians = {page: statistics.median(took for took, _ in rounds) for page, rounds in pages.items()}
    slowest = max(medians, key=lambda page: medians[page])
    more = {
        "slowest": slowest,
        "load": round(os.getloadavg()[0], 1),
        "pages": {page: round(took) for page, took in medians.items()},
        "best": {page: round(min(rounds)[0]) for page, rounds in pages.items()},
        "cpu": {page: round(min(rounds)[1]) for page, rounds in pages.items()},
    }
    figure(name, medians[slowest], "ms", allowed, rollouts, smaller_is_better=True, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the rollouts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-page-") as folder:
        home = arguments.home or Path(folder)
        if not (home / "lake" / "catalog.duckdb").is_file():
            groups, held_out = (2, 10) if arguments.quick else (GROUPS, HELD_OUT)
            say(f"making {EPOCHS * groups * GROUP + len(EVALUATED) * held_out} rollouts in {home}")
            make(home, groups, held_out)
        measure(home, arguments.rounds)


if __name__ == "__main__":
    main()
