"""Tasks, and which of them an epoch rolls out."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_core.config import Settings, SettingsError
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import Again
from lightning_core.lake.unsolved import unsolved_shares
from lightning_core.loading import load_callable


@dataclass(frozen=True)
class Task:
    id: str
    content: dict[str, Any]


@dataclass(frozen=True)
class PlannedRollout:
    """One rollout of an epoch. Its id says where it belongs, so a resumed epoch plans the same ones."""

    rollout_id: str
    group_id: str
    task: Task
    again: bool = False  # a task of the epoch before that not all of its rollouts solved


def load_tasks(reference: str, id_field: str, setting: str) -> list[Task]:
    """Tasks from `module:function`, .jsonl, .json or .parquet.

    Raises SettingsError naming the setting, for what cannot be read, is empty, or has two tasks with one id.
    """
    if ":" in reference and not Path(reference).exists():
        rows: Any = _call(reference, setting)
    else:
        rows = _read(Path(reference), setting)
    tasks = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise SettingsError(
                f"{setting}: {reference}: task {number} is a {type(row).__name__}; every task is a JSON object"
            )
        try:
            json.dumps(row)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{setting}: {reference}: task {number} cannot be sent as JSON: {error}") from None
        tasks.append(Task(str(row.get(id_field, number)), row))
    if not tasks:
        raise SettingsError(f"{setting}: {reference}: there is no task in it")
    repeated = [name for name, n in Counter(t.id for t in tasks).items() if n > 1]
    if repeated:
        raise SettingsError(
            f"{setting}: {reference}: {len(repeated)} ids occur more than once, the first is {repeated[0]!r} (tasks.id_field is {id_field!r})"
        )
    return tasks


def _call(reference: str, setting: str) -> list[Any]:
    try:
        return list(load_callable(reference, setting)())
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{setting}: {reference} gave no list of tasks: {type(error).__name__}: {error}") from error


def _read(path: Path, setting: str) -> Iterable[Any]:
    if not path.is_file():
        raise SettingsError(
            f"{setting}: {path}: no such file; give a .jsonl, .json or .parquet file, or `module:function`"
        )
    if path.suffix == ".parquet":
        import polars

        return polars.read_parquet(path).to_dicts()
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text())
        return [_parse(line, number) for number, line in enumerate(path.read_text().split("\n"), 1) if line.strip()]
    except ValueError as error:
        raise SettingsError(f"{setting}: {path}: not valid JSON: {error}") from None


def _parse(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def plan_training(settings: Settings, tasks: list[Task], epoch: int) -> list[PlannedRollout]:
    """Rollouts of a training epoch: a seeded order over all tasks, or the one given; none twice before all were seen.

    With `rollout.unsolved_per_epoch`, tasks of the epoch before come on top: read from its rewards, so it is derived first.
    """
    wanted = settings.rollout.tasks_per_epoch
    start = epoch * wanted
    chosen: list[Task] = []
    while len(chosen) < wanted:
        lap, place = divmod(start + len(chosen), len(tasks))
        order = list(tasks)
        if settings.rollout.shuffle:
            random.Random(f"{settings.seed}/{lap}").shuffle(order)
        chosen += order[place : place + wanted - len(chosen)]
    drawn, by_id = draw_again(settings, epoch), {task.id: task for task in tasks}
    again = [by_id[name] for name in drawn.tasks if name in by_id] if drawn else []
    again = again[: settings.rollout.unsolved_per_epoch]
    return _plan(settings.run, f"{epoch:04d}", chosen, settings.rollout.group_size, again)


def draw_again(settings: Settings, epoch: int) -> Again | None:
    """All tasks that not all rollouts of the epoch before solved, in the order in which they are tried again: drawn without
    replacement, weighted by the share of rollouts that did not solve them. What was drawn stands, unless the epoch before began
    anew. None where nothing is to be tried again, or the epoch before is not derived.

    Each is given u^(1/weight), u uniform, and the highest are drawn (Efraimidis and Spirakis, 2006). The weights are those
    of prioritized sampling, 1 - success rate (Kimi k1.5, 2025, arXiv 2501.12599).
    """
    lake = Lake(settings.home)
    before, own = lake.manifests.epoch(settings.run, epoch - 1), lake.manifests.epoch(settings.run, epoch)
    if not settings.rollout.unsolved_per_epoch or before is None:
        return None
    if own is not None and own.again is not None and own.again.after == before.opened_offset:
        return own.again
    shares = unsolved_shares(lake, before)
    if shares is None:
        return None
    uniform = random.Random(f"{settings.seed}/unsolved/{epoch}").random
    keys = {name: uniform() ** (1 / share) for name, share in shares.items()}
    return Again(after=before.opened_offset, tasks=sorted(keys, key=lambda name: -keys[name]))


def plan_evaluation(settings: Settings, tasks: list[Task], epoch: int) -> list[PlannedRollout]:
    """The rollouts of each held-out task, after `epoch` epochs of training."""
    return _plan(
        settings.run, f"{epoch:04d}e", tasks[: settings.evaluation.limit], settings.evaluation.rollouts_per_task
    )


def _plan(run: str, label: str, tasks: list[Task], group_size: int, again: Sequence[Task] = ()) -> list[PlannedRollout]:
    planned = []
    seen: Counter[str] = Counter()
    for number, task in enumerate([*tasks, *again]):
        # A task that comes round again within an epoch is a group of its own.
        seen[task.id] += 1
        group = f"{run}.{label}.{_safe(task.id)}" + (f".{seen[task.id]}" if seen[task.id] > 1 else "")
        planned += [PlannedRollout(f"{group}.{k}", group, task, number >= len(tasks)) for k in range(group_size)]
    return planned


def _safe(task_id: str) -> str:
    """The id as it may stand in a URL; ids that had to be changed carry a digest so that no two become one."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in task_id)[:40]
    return safe if safe == task_id else f"{safe}-{hashlib.sha256(task_id.encode()).hexdigest()[:8]}"
