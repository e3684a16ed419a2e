"""What becomes of versions after an epoch: their evaluation is noted, and those nothing needs are removed."""

from __future__ import annotations

from typing import Any

from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.lake.manifest import stage_key
from lightning_core.policies.store import Evaluation
from lightning_core.process.interrupts import held
from lightning_core.tracking.mlflow_backend import tracking_uri
from lightning_core.tracking.prune import RegistryAway, prune_everywhere
from lightning_flows.tasks.progress import logger


def note_evaluation(epoch: Epoch, row: dict[str, Any]) -> dict[str, str]:
    """Write the held-out result (a row of epoch_rows) into the versions it is of; returns policy → best version."""
    if row["held_out_right"] is None:
        return {}
    settings = epoch.settings
    asked = settings.evaluation.model_dump(exclude={"every", "patience"})
    evaluation = Evaluation(
        run=epoch.run,
        epoch=epoch.number,
        tasks=row["held_out_tasks"],
        right=row["held_out_right"],
        reward=row["held_out_reward"],
        # A digest of what makes two results comparable: tasks (where they come from), limits, and what counts as right.
        held_out=stage_key(settings.tasks.evaluate, "id", asked, settings.reward),
    )
    best = {}
    for name, version in epoch.manifest.versions.items():
        best[name] = epoch.policies[name].evaluated(version, evaluation)
        logger().info("%s: %.1f%% right with %s, the best is %s", name, 100 * evaluation.right, version, best[name])
    return best


def prune_versions(run: Run) -> dict[str, list[str]]:
    """Remove versions nothing needs, unless the settings say otherwise; returns policy → versions removed.

    Where the registry cannot be asked, nothing is removed, and the log says so: the next epoch tries again.
    """
    settings = run.settings
    if settings.store.keep_every == 1:
        return {}
    there = settings.tracking.mlflow_uri or (settings.home / "mlflow.db").is_file()
    gone = {}
    for policy in settings.policies:
        try:
            with held():
                done = prune_everywhere(
                    settings.home,
                    policy.name,
                    settings.store.keep_every,
                    by=f"run {settings.run}",
                    tracking=tracking_uri(settings.tracking, run.home) if there else None,
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
