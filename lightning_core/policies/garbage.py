"""Which versions nothing needs any more, and their removal.

Kept: the base (every version descends from it, and the KL's reference is it), what is served and its parent, the best,
the newest (its number must not be given twice), every k-th, what is pinned, and what an epoch of a run begins with: that
of its newest epochs and of those that have not come to their end.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from lightning_core.files import fsync
from lightning_core.lake.manifest import EpochManifest, Manifests
from lightning_core.policies.store import BASE_VERSION, PolicyStore, StoreError

log = logging.getLogger(__name__)

_LEFT_BEHIND_S = 3600  # work folders this old belong to a process that was killed


@dataclass
class Collected:
    """What garbage collection removed of a policy, or would remove."""

    policy: str
    kept: dict[str, list[str]] = field(default_factory=dict)  # version → why
    gone: dict[str, int] = field(default_factory=dict)  # version → bytes
    digests: dict[str, str] = field(default_factory=dict)  # version that goes → digest of its files
    left_behind: int = 0  # half-made folders of processes that were killed

    @property
    def bytes(self) -> int:
        return sum(self.gone.values())


def policies(home: Path) -> list[str]:
    """Names of the policies that have a store in `home`."""
    return sorted(folder.name for folder in (home / "policies").glob("*") if PolicyStore(home, folder.name).versions())


def collect(home: Path, policy: str, keep_every: int | None = None, dry_run: bool = False) -> Collected:
    """Remove the versions of `policy` that nothing needs; with `dry_run` only say which those are.

    `keep_every` k: versions whose number k divides stay. A version goes by one rename, so none is ever half there.
    Raises StoreError or LakeError, and removes nothing, where a manifest or pointer that says what is needed is unreadable.
    """
    store = PolicyStore(home, policy)
    if not store.versions():
        raise StoreError(f"no policy {policy!r} in {home / 'policies'}; there are {policies(home) or 'none'}")
    with store.lock():
        done = _plan(store, Manifests(home / "lake").epochs(), keep_every)
        if dry_run:
            return done
        for version in done.gone:
            _remove(store.folder / version)
        for folder in (*store.folder.glob(".gone-*"), *store.folder.glob(".base-*")):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > _LEFT_BEHIND_S:
                shutil.rmtree(folder)
                done.left_behind += 1
    if done.gone:
        log.info(
            "policy %s: removed %d versions nothing needs (%.1f MB), kept %d",
            policy, len(done.gone), done.bytes / 1e6, len(done.kept),
        )  # fmt: skip
    return done


def _plan(store: PolicyStore, epochs: list[EpochManifest], keep_every: int | None) -> Collected:
    found = Collected(store.name)
    versions, current = store.versions(), store.current()
    why: dict[str, list[str]] = {version: [] for version in versions}

    def keep(version: str | None, reason: str) -> None:
        if version in why and reason not in why[version]:
            why[version].append(reason)

    keep(BASE_VERSION, "base")
    keep(current, "current")
    if current is not None and current in why:
        keep(store.manifest(current).parent, "parent of current")
    keep(store.best(), "best")
    for version in store.pinned():
        keep(version, "pinned")
    for run, begun_with in _begun_with(store.name, epochs):
        keep(begun_with, f"run {run}")
    keep(versions[-1], "newest")
    for version in versions if keep_every else []:
        if int(version[1:]) % (keep_every or 1) == 0:
            keep(version, f"every {keep_every}")
    for version, reasons in why.items():
        if reasons:
            found.kept[version] = reasons
        else:
            folder = store.path(version)
            found.gone[version] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            try:
                found.digests[version] = store.manifest(version).digest
            except StoreError as error:
                log.warning("%s goes, though its manifest cannot be read: %s", version, error)
    return found


def _begun_with(policy: str, epochs: list[EpochManifest]) -> list[tuple[str, str | None]]:
    """(run, version): what the newest epochs of every run, and those not finished, sampled from and trained."""
    newest = {(e.run, e.mode): e.epoch for e in sorted(epochs, key=lambda e: e.epoch)}
    found: list[tuple[str, str | None]] = []
    for e in epochs:
        if not e.recorded or newest[e.run, e.mode] == e.epoch:
            trained = e.stages.get(f"train {policy}")
            begun = (e.versions.get(policy), e.sampled.get(policy), trained.output["version"] if trained else None)
            found += [(e.run, version) for version in begun]
    return found


def _remove(folder: Path) -> None:
    gone = folder.with_name(f".gone-{folder.name}-{secrets.token_hex(4)}")
    os.rename(folder, gone)
    fsync(folder.parent)
    shutil.rmtree(gone)
