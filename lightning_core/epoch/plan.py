"""Which tasks an epoch rolls out."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_core.agents.attempt import AttemptSpec
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.task_file import Task
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.gateway.tokens import GRACE_S
from lightning_core.lake import sql
from lightning_core.lake.manifest import Again


@dataclass(frozen=True)
class PlannedRollout:
    """One rollout of an epoch. Its id says where it belongs, so a resumed epoch plans the same ones."""

    rollout_id: str
    group_id: str
    task: Task
    again: bool = False  # a task of the epoch before that not all of its rollouts solved


def plan_training(run: Run, tasks: list[Task], epoch: int) -> list[PlannedRollout]:
    """Rollouts of a training epoch: a seeded order over all tasks, or the one given; none twice before all were seen.

    With `rollout.unsolved_per_epoch`, tasks of the epoch before come on top: read from its rewards, so it is derived first.
    """
    rollout = run.settings.rollout
    wanted = rollout.tasks_per_epoch
    start = epoch * wanted
    chosen: list[Task] = []
    while len(chosen) < wanted:
        lap, place = divmod(start + len(chosen), len(tasks))
        order = list(tasks)
        if rollout.shuffle:
            random.Random(f"{run.settings.seed}/{lap}").shuffle(order)
        chosen += order[place : place + wanted - len(chosen)]
    drawn, by_id = draw_again(run, epoch), {task.id: task for task in tasks}
    again = [by_id[name] for name in drawn.tasks if name in by_id] if drawn else []
    again = again[: rollout.unsolved_per_epoch]
    return _plan(run.run, f"{epoch:04d}", chosen, rollout.group_size, again)


def draw_again(run: Run, epoch: int) -> Again | None:
    """All tasks that not all rollouts of the epoch before solved, in the order in which they are tried again: drawn without
    replacement, weighted by the share of rollouts that did not solve them. What was drawn stands, unless the epoch before began
    anew. None where nothing is to be tried again, or the epoch before is not derived.

    Each is given u^(1/weight), u uniform, and the highest are drawn (Efraimidis and Spirakis, 2006). The weights are those
    of prioritized sampling, 1 - success rate (Kimi k1.5, 2025, arXiv 2501.12599).
    """
    before, own = run.known(epoch - 1), run.known(epoch)
    if not run.settings.rollout.unsolved_per_epoch or before is None:
        return None
    if own is not None and own.again is not None and own.again.after == before.opened_offset:
        return own.again
    shares = unsolved_shares(run.at(before))
    if shares is None:
        return None
    uniform = random.Random(f"{run.settings.seed}/unsolved/{epoch}").random
    keys = {name: uniform() ** (1 / share) for name, share in shares.items()}
    return Again(after=before.opened_offset, tasks=sorted(keys, key=lambda name: -keys[name]))


def unsolved_shares(epoch: Epoch) -> dict[str, float] | None:
    """Task id → share of its rollouts that did not solve it, above 0 to 1, in order of the ids.

    Of a training epoch; None where it is not derived.
    """
    if "rollout_rewards" not in epoch.manifest.tables:
        return None
    with epoch.lake.engine() as con:
        con.read_parquet(epoch.table("rollout_rewards")).create_view("rollout_rewards")
        return dict(con.execute(sql.text("plan/unsolved_shares")).fetchall())


def plan_evaluation(run: Run, tasks: list[Task], epoch: int) -> list[PlannedRollout]:
    """The rollouts of each held-out task, after `epoch` epochs of training."""
    evaluation = run.settings.evaluation
    return _plan(run.run, f"{epoch:04d}e", tasks[: evaluation.limit], evaluation.rollouts_per_task)


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


def attempt_of(epoch: Epoch, rollout: PlannedRollout, attempt_id: str, gateway: GatewayHandle) -> AttemptSpec:
    """Return what an attempt at a planned rollout is given, with an address and a token of its own at the gateway."""
    name, lasts_s = rollout.rollout_id, epoch.settings.agent.timeout_s + GRACE_S
    return AttemptSpec(
        run=epoch.run,
        epoch=epoch.number,
        mode=epoch.mode,
        rollout_id=name,
        attempt_id=attempt_id,
        group_id=rollout.group_id,
        task_id=rollout.task.id,
        task=rollout.task.content,
        base_url=gateway.attempt_url(name, attempt_id),
        token=gateway.mint(name, attempt_id, epoch.mode, lasts_s),
        secret=gateway.secret,
        proof=gateway.prove(name, attempt_id, lasts_s),
    )
