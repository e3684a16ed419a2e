"""Rollouts that need no settings, derived as one epoch for all tests of a module; and small groups of rollouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lake_maker import Attempt, derived, table

Epoch = dict[str, dict[str, list[dict[str, Any]]]]  # scenario → table → its rows
Build = Callable[[], list[Attempt]]


class Scenarios:
    """What a module's tests make, by name."""

    def __init__(self) -> None:
        self.builds: dict[str, Build] = {}

    def add(self, build: Build) -> Build:
        """`build` makes rollouts that need no settings: those of all scenarios are derived as one epoch, once."""
        self.builds[build.__name__] = build
        return build

    def derived(self, home: Path) -> Epoch:
        """Ids of rollouts, attempts and groups are those that the scenario gave."""
        own = ("rollout_id", "attempt_id", "group_id")
        everything = [
            row | {column: f"{name}:{row[column]}" for column in own if row.get(column)}
            for name, build in self.builds.items()
            for row in rows(build())
        ]
        lake, manifest = derived(home, everything)
        found: Epoch = {name: {made: [] for made in manifest.tables} for name in self.builds}
        for made in manifest.tables:
            for row in table(lake, manifest, made):
                if row.get("rollout_id"):
                    ids = {column: row[column].partition(":")[2] for column in own if row.get(column)}
                    found[row["rollout_id"].partition(":")[0]][made].append(row | ids)
        return found


def group(rewards: list[float], **columns: Any) -> list[Attempt]:
    """Rollouts of one task, each with an agent, one call, and a reward."""
    attempts = []
    for number, reward in enumerate(rewards):
        attempt = Attempt(f"r.{number}", f"a{number}")
        attempt.root()
        attempt.agent("solver")
        attempt.call([1, 2, 3], [10 + number, 4], **columns)
        attempt.reward(reward)
        attempts.append(attempt)
    return attempts


def rows(attempts: list[Attempt]) -> list[dict[str, Any]]:
    return [row for attempt in attempts for row in attempt.rows]


def reasons(tmp_path: Path, attempts: list[Attempt], **changes: Any) -> list[str]:
    lake, epoch = derived(tmp_path, rows(attempts), **changes)
    return [row["reason"] for row in table(lake, epoch, "exclusions")]
