"""Compare a run's first evaluation on the held-out tasks with its last."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.held_out import HeldOut, held_out
from lightning_core.lake import catalog, sql


@dataclass(frozen=True)
class Answer:
    """A held-out task, and what the agent made of it in the two evaluations (JSON; None where it failed: `error`)."""

    task_id: str
    task: str | None
    rollout_id: str  # of the later evaluation
    output_before: str | None
    output_after: str | None
    error_before: str | None
    error_after: str | None
    reward_before: float
    reward_after: float


@dataclass(frozen=True)
class Gain:
    """Mean change of the reward over tasks that both evaluations have, and its 95% interval (sql/analysis/held_out_gains)."""

    tasks: int
    gained: float
    low: float | None  # None for a single task
    high: float | None


@dataclass(frozen=True)
class Outcome:
    """Two evaluations, each after so many epochs of training; of a single one, `since` is `epoch` and there is no gain."""

    since: int
    epoch: int
    before: HeldOut
    after: HeldOut
    gain: Gain | None
    answers: list[Answer]


def gained(con: duckdb.DuckDBPyConnection, run: str, since: int, epoch: int) -> Gain | None:
    """Return the gain from one evaluation of a run to another, in its catalog; None where they have no task in common."""
    question = (
        "SELECT tasks, gained, low, high FROM held_out_gains(p_run := $run, p_since := $since, p_epoch := $epoch)"
    )
    found = con.execute(question, {"run": run, "since": since, "epoch": epoch}).fetchone()
    return None if found is None else Gain(*found)


def some_answers(con: duckdb.DuckDBPyConnection, run: str, since: int, epoch: int, most: int = 3) -> list[Answer]:
    """Return a few tasks of both evaluations of a run, in its catalog, with what the agent answered in each."""
    asked = {"run": run, "since": since, "epoch": epoch, "most": most}
    return [Answer(*row) for row in con.execute(sql.text("outcome/answers"), asked).fetchall()]


def outcome(run: Run) -> Outcome | None:
    """Return the run's first and last evaluation, compared; None before the first. Rebuilds the catalog, which the gain
    and the answers are asked of."""
    found = [m for m in run.lake.manifests.epochs(run.run, "evaluate") if "rollout_rewards" in m.tables]
    if not found:
        return None
    first, last = found[0], found[-1]
    run.lake.rebuild_catalog()
    with catalog.connect(run.lake.root) as con:
        gain = gained(con, run.run, first.epoch, last.epoch)
        answers = some_answers(con, run.run, first.epoch, last.epoch) if gain is not None else []
    return Outcome(
        since=first.epoch,
        epoch=last.epoch,
        before=held_out(run.at(first)),
        after=held_out(run.at(last)),
        gain=gain,
        answers=answers,
    )
