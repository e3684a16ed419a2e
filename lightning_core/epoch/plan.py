"""Which tasks an epoch rolls out."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from dataclasses import dataclass, replace

import duckdb

from lightning_core.agents.attempt import AttemptSpec
from lightning_core.epoch.draw import draw
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.task_file import Task
from lightning_core.gateway.attempt_tokens import GRACE_S
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake import sql
from lightning_core.lake.manifest import Draw
from lightning_core.prompts.served import PromptSet


@dataclass(frozen=True)
class PlannedRollout:
    """One rollout of an epoch. Its id says where it belongs, so a resumed epoch plans the same ones."""

    rollout_id: str
    group_id: str
    task: Task
    draw: Draw | None = None  # that its task came in; None where tasks come in laps
    prompts: PromptSet | None = None  # that it is served; None: the epoch's, see `with_prompts`
    spare: int = 0  # not 0: of the nth group that is rolled out in the place of one that teaches nothing


def plan_training(run: Run, tasks: list[Task], epoch: int) -> list[PlannedRollout]:
    """Plan the rollouts of a training epoch: of tasks that `tasks.sampler` draws, or in laps, none twice before all were seen.

    A sampler reads the rewards of earlier epochs, so those are derived first. Where it draws fewer tasks than an epoch has, it
    begins again with its first. Behind the epoch's own rollouts are those of spare groups, `rollout.replaced_groups` (see `chosen`).
    """
    rollout = run.settings.rollout
    wanted = rollout.tasks_per_epoch + rollout.replaced_groups
    drawn = draw(run, tasks, epoch)
    if drawn is not None:
        by_id = {task.id: task for task in tasks}
        of_epoch = [by_id[name] for name in itertools.islice(itertools.cycle(drawn.weights), wanted)]
    else:
        of_epoch = _in_laps(run, tasks, epoch, wanted)
    planned = _plan(run.run, f"{epoch:04d}", of_epoch, rollout.group_size, drawn)
    own = rollout.tasks_per_epoch * rollout.group_size
    return planned[:own] + [replace(r, spare=1 + n // rollout.group_size) for n, r in enumerate(planned[own:])]


def chosen(epoch: Epoch, planned: list[PlannedRollout]) -> list[PlannedRollout]:
    """Return what the epoch rolls out of its plan: of spare groups those that have come in the place of others so far."""
    return [rollout for rollout in planned if rollout.spare <= epoch.manifest.replaced]


def spare_groups(epoch: Epoch, planned: list[PlannedRollout]) -> int:
    """Return how many groups of the plan may still be added to the epoch; none once its training has begun."""
    if epoch.manifest.ended_with:
        return 0
    return max(rollout.spare for rollout in planned) - epoch.manifest.replaced


def missing_groups(epoch: Epoch, spare: int) -> tuple[int, int]:
    """Return how many groups of the derived epoch teach, and how many of `spare` further ones are to be added."""
    wanted = epoch.settings.rollout.tasks_per_epoch
    with duckdb.connect() as con:
        con.read_parquet(epoch.table("advantages")).create_view("advantages")
        return con.execute(sql.text("plan/missing_groups"), {"wanted": wanted, "spare": spare}).fetchall()[0]


def _in_laps(run: Run, tasks: list[Task], epoch: int, wanted: int) -> list[Task]:
    """Go on with the lap where the epochs before ended, with what they replaced."""
    settings = run.settings
    replaced = sum(m.replaced for m in run.lake.manifests.epochs(run.run, "train") if m.epoch < epoch)
    start = epoch * settings.rollout.tasks_per_epoch + replaced
    found: list[Task] = []
    while len(found) < wanted:
        lap, place = divmod(start + len(found), len(tasks))
        order = list(tasks)
        if settings.tasks.sampler == "shuffled":
            random.Random(f"{settings.seed}/{lap}").shuffle(order)
        found += order[place : place + wanted - len(found)]
    return found


def plan_evaluation(run: Run, tasks: list[Task], epoch: int) -> list[PlannedRollout]:
    """Plan the rollouts of each held-out task, after `epoch` epochs of training."""
    evaluation = run.settings.evaluation
    return plan_batch(run, tasks[: evaluation.limit], epoch, evaluation.rollouts_per_task)


def plan_batch(run: Run, tasks: list[Task], number: int, rollouts_per_task: int) -> list[PlannedRollout]:
    """Plan the rollouts of given tasks, as evaluation `number` of a run."""
    return _plan(run.run, f"{number:04d}e", tasks, rollouts_per_task)


def _plan(run: str, label: str, tasks: list[Task], group_size: int, drawn: Draw | None = None) -> list[PlannedRollout]:
    planned = []
    seen: Counter[str] = Counter()
    for task in tasks:
        # A task that comes round again within an epoch is a group of its own.
        seen[task.id] += 1
        group = f"{run}.{label}.{_safe(task.id)}" + (f".{seen[task.id]}" if seen[task.id] > 1 else "")
        planned += [PlannedRollout(f"{group}.{k}", group, task, drawn) for k in range(group_size)]
    return planned


def _safe(task_id: str) -> str:
    """Return the id as it may stand in a URL; an id that had to be changed carries a digest so that no two ids become
    one."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in task_id)[:40]
    return safe if safe == task_id else f"{safe}-{hashlib.sha256(task_id.encode()).hexdigest()[:8]}"


def attempt_of(epoch: Epoch, rollout: PlannedRollout, attempt_id: str, gateway: GatewayHandle) -> AttemptSpec:
    """Return what an attempt at a planned rollout is given, with an address and a token of its own at the gateway."""
    name, lasts_s = rollout.rollout_id, epoch.settings.agent.timeout_s + GRACE_S
    prompts = rollout.prompts
    return AttemptSpec(
        run=epoch.run,
        epoch=epoch.number,
        mode=epoch.mode,
        rollout_id=name,
        attempt_id=attempt_id,
        group_id=rollout.group_id + "".join(f".{prompt}-{version}" for prompt, version in own_prompts(epoch, rollout)),
        task_id=rollout.task.id,
        task=rollout.task.content,
        base_url=gateway.attempt_url(name, attempt_id),
        token=gateway.mint(name, attempt_id, epoch.mode, lasts_s, prompts.digest if prompts is not None else None),
        secret=gateway.secret,
        proof=gateway.prove(name, attempt_id, lasts_s),
        prompts=prompts.delivered() if prompts is not None else {},
    )


def own_prompts(epoch: Epoch, rollout: PlannedRollout) -> list[tuple[str, str]]:
    """Return the (prompt, version) that a rollout has and its epoch has not: its group is another than the others'."""
    versions = rollout.prompts.versions if rollout.prompts is not None else {}
    return [(n, v) for n, v in sorted(versions.items()) if epoch.manifest.prompt_versions.get(n) != v]
