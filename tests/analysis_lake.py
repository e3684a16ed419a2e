"""A lake that has something of everything that the questions of sql/analysis ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from tests.lake_maker import SECOND, Attempt, derived, settings

_SEALED = 5000


def rollout(
    number: int,
    reward: float,
    epoch: int = 0,
    mode: str = "train",
    searches: int = 0,
    task_id: str = "t",
    seconds: float = 1.0,
    run: str = "run",
    start: float = 9000.0,
    **columns: str,
) -> Attempt:
    """A planner that calls once, and a coder that searches so often for the same and fails at it, then calls."""
    attempt = Attempt(f"{run}.{number}", f"a{number}", f"{epoch}.{task_id}", start + 10 * number)
    root = attempt.root(epoch=epoch, mode=mode, task_id=task_id, at=(0.0, seconds), run=run, **columns)
    planner = attempt.agent("planner", (0.1, 0.9), root)
    attempt.call([1, 2], [3, 4], (0.15, 0.2), planner, input_tokens=2, output_tokens=2, finish_reasons='["stop"]')
    if searches:
        coder = attempt.agent("coder", (0.3, 0.8), planner)
        for n in range(searches):
            at = (0.31 + n / 100, 0.315 + n / 100)
            failed = {"status": "error", "status_message": "no net", "tool_arguments": '{"q": 1}'}
            attempt.span("search", at, coder, op="tool", tool_name="search", **failed)
        attempt.call([9], [8] * 6, (0.5, 0.6), coder, input_tokens=1, output_tokens=6, finish_reasons='["length"]')
    attempt.reward(reward)
    return attempt


def of_a_run(run: str, start: float) -> list[Attempt]:
    """Two training epochs, an evaluation before each, broken and unfinished attempts, and a late span."""
    when = {"run": run, "start": start}
    made = [
        rollout(number, reward, 0, "train", searches, task, **when)  # type: ignore[arg-type]
        for number, (reward, searches, task) in enumerate([(1.0, 0, "a"), (1.0, 0, "a"), (0.0, 3, "b"), (1.0, 1, "b")])
    ]
    made += [
        rollout(number, reward, 1, "train", searches, "c", 5.0, **when)  # type: ignore[arg-type]
        for number, (reward, searches) in enumerate([(0.5, 0), (1.0, 2)], 4)
    ]
    made += [
        rollout(number, reward, epoch, "evaluate", task_id="held", **when)  # type: ignore[arg-type]
        for number, (reward, epoch) in enumerate([(0.0, 0), (1.0, 1)], 6)
    ]
    broken = Attempt(f"{run}.0", "broken", start=start - 100)
    broken.root(outcome="infrastructure", error="vLLM answered 503 after 30 s", run=run)
    running = Attempt(f"{run}.9", "running", start=start + 1000)
    scope: dict[str, Any] = {"run": run, "epoch": 1, "mode": "train", "group_id": "g", "task_id": "g"}
    running.span("rollout.start", (0, 0), op="rollout.start", **scope)
    late = Attempt(f"{run}.4", "a4", start=start + 50)
    received = int((start + 51) * SECOND)
    late.span("afterthought", (0.5, 0.6), record_offset=_SEALED + 1, span_id="ef" * 8, received_ns=received, op="other")
    return [*made, broken, running, late]


def make(home: Path) -> Lake:
    """The run `run`, and an earlier one, `other`; of each a span that was rejected."""
    attempts = of_a_run("other", 1000.0) + of_a_run("run", 9000.0)
    lake, _ = derived(home, [row for attempt in attempts for row in attempt.rows])
    epochs = [(run, epoch, mode) for run in ("run", "other") for epoch in (0, 1) for mode in ("train", "evaluate")]
    derive_epochs(lake, epochs)
    rejected = lake.spool / "rejected"
    rejected.mkdir(parents=True)
    lines = [
        {"offset": 1, "index": index, "reason": "no ids", "rollout_id": f"{run}.1", "attempt_id": "a1"}
        for index, run in enumerate(("run", "other"))
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (rejected / f"{0:020d}-{_SEALED:020d}.jsonl").write_text(text)
    lake.rebuild_catalog()
    return lake


def derive_epochs(lake: Lake, epochs: list[tuple[str, int, str]]) -> None:
    """Derive (run, epoch, mode) of what the lake has."""
    for run, number, mode in epochs:
        epoch = EpochManifest(run=run, epoch=number, mode=mode, opened_offset=0, sealed_offset=_SEALED)
        epoch.versions = {"policy": f"v{number:04d}"}
        derive(Epoch(settings(lake.root.parent).model_copy(update={"run": run}), epoch), "key")
        lake.manifests.put_epoch(epoch)
