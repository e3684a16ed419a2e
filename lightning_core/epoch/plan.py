"""Which tasks an epoch rolls out."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_core.config import Settings
from lightning_core.epoch.task_file import Task
from lightning_core.epoch.unsolved import unsolved_shares
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import Again


@dataclass(frozen=True)
class PlannedRollout:
    """One rollout of an epoch. Its id says where it belongs, so a resumed epoch plans the same ones."""

    rollout_id: str
    group_id: str
    task: Task
    again: bool = False  # a task of the epoch before that not all of its rollouts solved


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
