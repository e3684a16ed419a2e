"""Questions to the catalog over small lakes: for tests of the views."""

from __future__ import annotations

from typing import Any

from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from tests.lake_maker import Attempt

Rows = list[dict[str, Any]]


def ask(lake: Lake, question: str) -> Rows:
    """Rows of a question to the catalog, which is built at the first one."""
    if not (lake.root / "catalog.duckdb").exists():
        lake.rebuild_catalog()
    with catalog.connect(lake.root) as con:
        relation = con.sql(question)
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def simple(number: int, **root: Any) -> Attempt:
    """A rollout of one group with one call and a reward equal to its number modulo two."""
    attempt = Attempt(rollout=f"r.{number}", attempt=f"a{number}", start=100.0 + 10 * number)
    attempt.root(**root)
    attempt.call([1, 2, 3], [4, 5], input_tokens=3, output_tokens=2)
    attempt.reward(float(number % 2))
    return attempt


def sealed_at(lake: Lake, epoch: EpochManifest, offset: int, **changes: Any) -> None:
    epoch.sealed_offset = offset
    for name, value in changes.items():
        setattr(epoch, name, value)
    put(lake, epoch)


def put(lake: Lake, epoch: EpochManifest) -> None:
    lake.manifests.put_epoch(epoch)
    (lake.root / "catalog.duckdb").unlink(missing_ok=True)


def underived(lake: Lake, epoch: EpochManifest) -> None:
    """As it is while the epoch runs: spans and a manifest, no derived table."""
    epoch.tables = {}
    put(lake, epoch)


def team(number: int) -> Attempt:
    """An orchestrator that calls a coder, which calls a tool that fails."""
    attempt = Attempt(rollout=f"r.{number}", attempt=f"a{number}")
    root = attempt.root()
    boss = attempt.agent("orchestrator", (0.1, 0.9), root)
    coder = attempt.agent("coder", (0.3, 0.8), boss)
    attempt.call([1], [2, 2], (0.15, 0.25), boss, input_tokens=1, output_tokens=2)
    attempt.call([7], [8], (0.35, 0.4), coder, input_tokens=1, output_tokens=1)
    attempt.span("search", (0.5, 0.6), coder, op="tool", tool_name="search", status="error", status_message="no net")
    attempt.reward(float(number))
    return attempt
