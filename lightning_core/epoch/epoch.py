"""The handle of a run, and of one epoch of it: what works on either is given this.

It has the lake, the policies' versions and the epoch's manifest, and the settings, of which a function that reads one
section takes that section instead. Sent to another process or machine it reads the same paths there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_core.config import Settings
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, Mode
from lightning_core.policies.store import BASE_VERSION, PolicyStore, StoreError
from lightning_core.settings_file import flat

# Where it is, not what it is; and what may be a secret.
_NOT_KEPT: dict[str, Any] = {"home": True, "run": True, "agent": {"environment": True}}


class Run:
    """A run: its settings, the lake of its home, and the versions of its policies (policy → store)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.run = settings.run
        self.home: Path = settings.home
        self.lake = Lake(settings.home)
        self.policies = {policy.name: PolicyStore(settings.home, policy.name) for policy in settings.policies}

    def next_epoch(self) -> int:
        """Return the first training epoch that has not come to its end."""
        return self.lake.manifests.next_epoch(self.run)

    def known(self, number: int, mode: Mode = "train") -> EpochManifest | None:
        """Return the manifest of an epoch, None for one that was never opened."""
        return self.lake.manifests.epoch(self.run, number, mode)

    def at(self, manifest: EpochManifest) -> Epoch:
        """Return the handle of an epoch whose manifest is at hand."""
        return Epoch(self.settings, manifest)

    def open(self, number: int, mode: Mode, versions: dict[str, str]) -> Epoch:
        """Open an epoch with the versions (policy → version) that it samples from and trains, or go on with it."""
        return self.at(self.lake.open_epoch(self.run, number, mode, versions))

    def versions(self, number: int) -> dict[str, str]:
        """Return policy → version before an epoch: the newest of this run's earlier epochs, the base before any."""
        found = dict.fromkeys(self.policies, BASE_VERSION)
        for manifest in self.lake.manifests.epochs(self.run, "train"):
            if manifest.epoch < number:
                found |= {name: version for name, version in manifest.ended_with.items() if name in found}
        return found

    def require_versions(self, wanted: dict[str, str], what: str) -> None:
        """Raise StoreError where a version of `wanted` (policy → version) is not there, before `what` starts or forgets anything."""
        for name, version in wanted.items():
            if version != BASE_VERSION:  # which the first flow of a home publishes
                try:
                    PolicyStore(self.home, name).path(version)
                except StoreError as error:
                    raise StoreError(f"{what}: {error}") from error


class Epoch(Run):
    """One epoch of a run, or the evaluation after so many: what its run has, and its manifest."""

    def __init__(self, settings: Settings, manifest: EpochManifest) -> None:
        super().__init__(settings)
        self.manifest = manifest

    @property
    def number(self) -> int:
        return self.manifest.epoch

    @property
    def mode(self) -> Mode:
        return self.manifest.mode

    @property
    def named(self) -> str:
        return self.manifest.named

    def save(self) -> None:
        """Write the manifest as it is now, with the settings."""
        self.manifest.settings = flat(self.settings.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_KEPT))
        self.lake.manifests.put_epoch(self.manifest)

    def table(self, name: str) -> str:
        """Return the file of one of its derived tables."""
        return str(self.lake.path(self.manifest.tables[name]))
