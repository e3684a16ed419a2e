"""Removal of versions from the store and, with it, of their files from MLflow's registry."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning_core.policies.prune import Pruned, prune
from lightning_core.policies.removed import removals
from lightning_core.policies.store import PolicyStore, StoreError
from lightning_core.tracking import registry

logger = logging.getLogger(__name__)


class RegistryAway(StoreError):
    """MLflow's registry cannot be asked, so it is unknown which versions have a name there."""


def prune_everywhere(
    home: Path, policy: str, keep_every: int | None, *, by: str, tracking: str | None, dry_run: bool = False
) -> Pruned:
    """Remove versions of `policy` that neither a run nor the registry at `tracking` (None: there is none) needs.

    Raises StoreError or LakeError as policies.prune does, and RegistryAway; nothing was removed then.
    """
    if tracking is None:
        return prune(home, policy, keep_every, dry_run, by=by)
    client = registry.connect(tracking)
    from mlflow.exceptions import MlflowException

    try:
        named = registry.named(client, policy)
    except MlflowException as error:
        raise RegistryAway(f"policy {policy}: no version is removed, {tracking} cannot be asked: {error}") from error
    done = prune(home, policy, keep_every, dry_run, by=by, named=named)
    if not dry_run:
        gone = removals(PolicyStore(home, policy).folder)
        try:
            registry.forget(client, policy, {(v, r.digest): str(r) for v, r in gone.items() if r.digest is not None})
        except MlflowException as error:
            logger.warning("the next removal takes them out of %s too, which cannot be asked: %s", tracking, error)
    return done
