"""Sum an evaluation up: the share right with its interval, and pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from lightning_core.epoch.epoch import Epoch

_Z = 1.959964  # 95%


@dataclass(frozen=True)
class HeldOut:
    tasks: int
    rollouts: int
    right: float  # share of rollouts, 0 to 1
    interval: tuple[float, float]  # 95%, of `right`
    reward: float | None  # mean
    reward_interval: tuple[float, float] | None  # 95%, of `reward`; None where one lies outside 0 to 1
    pass_at: dict[int, float]  # k → share of tasks that one of k rollouts solves

    def __str__(self) -> str:
        more = "".join(f", pass@{k} {share:.1%}" for k, share in self.pass_at.items() if k > 1)
        return (
            f"{self.right:.1%} right {percents(self.interval)} in {self.rollouts} rollouts of {self.tasks} tasks{more}"
        )

    def as_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def percents(interval: tuple[float, float]) -> str:
    """Return a 95% interval of a share (0 to 1) in words: `(95%: 16.0 to 36.8)`."""
    return f"(95%: {100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def held_out(epoch: Epoch) -> HeldOut:
    """Sum up a derived evaluation; a task's rollouts are a group."""
    rows = duckdb.execute(
        """
        SELECT count(*), count(*) FILTER (success), list_sum(list_sort(list(reward))), count(reward),
            min(reward) >= 0 AND max(reward) <= 1
        FROM read_parquet(?) GROUP BY group_id ORDER BY group_id
        """,
        [epoch.table("rollout_rewards")],
    ).fetchall()
    counts = [(n, right) for n, right, *_ in rows]
    rewards = [(n, total, bounded) for *_, total, n, bounded in rows if n]
    rewarded = sum(n for n, *_ in rewards)
    rollouts, right = sum(n for n, _ in counts), sum(c for _, c in counts)
    least = min((n for n, _ in counts), default=0)
    return HeldOut(
        tasks=len(counts),
        rollouts=rollouts,
        right=right / rollouts if rollouts else 0.0,
        interval=interval(counts),
        reward=math.fsum(total for _, total, _ in rewards) / rewarded if rewarded else None,
        reward_interval=interval([(n, total) for n, total, _ in rewards])
        if rewarded and all(bounded for *_, bounded in rewards)
        else None,
        pass_at={k: pass_at(counts, k) for k in range(1, least + 1) if k & (k - 1) == 0 or k == least},
    )


def pass_at(counts: list[tuple[int, int]], k: int) -> float:
    """Return the mean over tasks of 1 - C(n-c, k) / C(n, k), n rollouts of which c are right: unbiased (Chen et al.,
    2021, eq. 1)."""
    return math.fsum(1 - math.comb(n - right, k) / math.comb(n, k) for n, right in counts) / len(counts)


def interval(counts: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return Wilson's 95% interval of the share right, from (rollouts, how many of them right) by task.

    Rollouts of a task are alike, so they count as fewer independent ones. Of rewards between 0 and 1, summed by task, it
    is an interval of their mean, and a wide one: none vary more than those that are 0 or 1.
    """
    rollouts = sum(n for n, _ in counts)
    if not rollouts:
        return 0.0, 1.0
    share = sum(right for _, right in counts) / rollouts
    tasks = len(counts)
    between = math.fsum((right / n - share) ** 2 for n, right in counts) / tasks
    independent = float(tasks)
    if between > 0:
        independent = min(float(rollouts), tasks * share * (1 - share) / between)
    spread = _Z * math.sqrt(share * (1 - share) / independent + _Z**2 / (4 * independent**2))
    middle, scale = share + _Z**2 / (2 * independent), 1 + _Z**2 / independent
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
