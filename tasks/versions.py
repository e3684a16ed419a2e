"""What becomes of versions after an epoch: their evaluation is noted, and those nothing needs are removed."""

from __future__ import annotations

from typing import Any

from lightning_core.config import Settings
from lightning_core.lake.manifest import EpochManifest, stage_key
from lightning_core.policies.store import Evaluation, PolicyStore
from lightning_core.tracking.mlflow_backend import tracking_uri
from lightning_core.tracking.prune import RegistryAway, prune
from lightning_flows.tasks.progress import logger


def note_evaluation(settings: Settings, epoch: EpochManifest, row: dict[str, Any]) -> dict[str, str]:
    """Write the held-out result (a row of epoch_rows) into the versions it is of; returns policy → best version."""
    if row["held_out_right"] is None:
        return {}
    evaluation = Evaluation(
        run=epoch.run,
        epoch=epoch.epoch,
        tasks=row["held_out_tasks"],
        right=row["held_out_right"],
        reward=row["held_out_reward"],
        held_out=_held_out(settings),
    )
    best = {}
    for name, version in epoch.versions.items():
        best[name] = PolicyStore(settings.home, name).evaluated(version, evaluation)
        logger().info("%s: %.1f%% right with %s, the best is %s", name, 100 * evaluation.right, version, best[name])
    return best


def _held_out(settings: Settings) -> str:
    """Digest of what makes two results comparable: tasks (where they come from), limits, and what counts as right."""
    asked = settings.evaluation.model_dump(exclude={"every", "patience"})
    return stage_key(settings.tasks.evaluate, "id", asked, settings.reward)


def collect_versions(settings: Settings) -> dict[str, list[str]]:
    """Remove versions nothing needs, unless the settings say otherwise; returns policy → versions removed.

    Where the registry cannot be asked, nothing is removed, and the log says so: the next epoch tries again.
    """
    if settings.store.keep_every == 1:
        return {}
    there = settings.tracking.mlflow_uri or (settings.home / "mlflow.db").is_file()
    gone = {}
    for policy in settings.policies:
        try:
            done = prune(
                settings.home,
                policy.name,
                settings.store.keep_every,
                by=f"run {settings.run}",
                tracking=tracking_uri(settings) if there else None,
            )
        except RegistryAway as error:
            logger().warning("%s", error)
            continue
        gone[policy.name] = list(done.gone)
        if done.gone:
            logger().info(
                "%s: %d versions removed that nothing needs (%.1f MB), %d stay",
                policy.name, len(done.gone), done.bytes / 1e6, len(done.kept),
            )  # fmt: skip
    return gone
