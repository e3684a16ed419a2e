"""Which versions nothing needs any more, and their removal.

Kept: the base (every version descends from it, and the KL's reference is it), what is served or loaded and its parent, the
best of all and of each run (which the alarm goes back to), the newest (its number must not be given twice), every k-th,
what is pinned or has a name in the registry, and what an epoch of a run began with or made: that of its newest finished
epoch and of those that are not finished.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lightning_core.files import rename
from lightning_core.lake.manifest import EpochManifest, Manifests
from lightning_core.policies.removed import Removal, note_removals
from lightning_core.policies.store import BASE_VERSION, Manifest, PolicyStore, StoreError, best_of
from lightning_core.policies.vllm import VllmServer

log = logging.getLogger(__name__)

_WORK = ("gone", "base", "damaged")  # work folders of this file and of store.py
_LEFT_BEHIND_S = 3600  # those that are so old belong to a process that was killed


@dataclass
class Pruned:
    """What was removed of a policy, or would be."""

    policy: str
    kept: dict[str, list[str]] = field(default_factory=dict)  # version → why
    gone: dict[str, int] = field(default_factory=dict)  # version → bytes
    digests: dict[str, str] = field(default_factory=dict)  # version that goes → digest of its files
    left_behind: int = 0  # half-made folders of processes that were killed

    @property
    def bytes(self) -> int:
        return sum(self.gone.values())


def policies(home: Path) -> list[str]:
    """Return the names of the policies that have a store in `home`."""
    return sorted(folder.name for folder in (home / "policies").glob("*") if PolicyStore(home, folder.name).versions())


def prune(
    home: Path,
    policy: str,
    keep_every: int | None = None,
    dry_run: bool = False,
    *,
    by: str = "`lightning-flows policies prune`",
    named: dict[tuple[str, str], list[str]] | None = None,
) -> Pruned:
    """Remove the versions of `policy` that nothing needs; with `dry_run` only report which those are.

    `keep_every` k: versions whose number k divides stay. `named`: (version, digest of its files) → why it stays, as
    tracking.registry.named has it. `by` is who removes them, for those who ask later. A version goes by one rename, so
    none is ever half there. Raises StoreError or LakeError, and removes nothing, where a manifest or pointer that says
    what is needed is unreadable.
    """
    store = PolicyStore(home, policy)
    if not store.versions():
        raise StoreError(f"no policy {policy!r} in {home / 'policies'}; there are {policies(home) or 'none'}")
    with store.lock():
        done = _plan(store, home, keep_every, named or {})
        if dry_run:
            return done
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        removed = {v: Removal(at=now, by=by, keep_every=keep_every, digest=done.digests.get(v)) for v in done.gone}
        if removed:
            note_removals(store.folder, removed)
        for version in done.gone:
            _remove(store.folder / version)
        for folder in (f for name in _WORK for f in store.folder.glob(f".{name}-*")):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > _LEFT_BEHIND_S:
                shutil.rmtree(folder)
                done.left_behind += 1
    return done


def _plan(store: PolicyStore, home: Path, keep_every: int | None, named: dict[tuple[str, str], list[str]]) -> Pruned:
    epochs = Manifests(home / "lake").epochs()
    found = Pruned(store.name)
    versions, current = store.versions(), store.current()
    made = {version: _manifest(store, version) for version in versions}
    why: dict[str, list[str]] = {version: [] for version in versions}

    def keep(version: str | None, reason: str) -> None:
        if version in why and reason not in why[version]:
            why[version].append(reason)

    keep(BASE_VERSION, "base")
    keep(current, "current")
    if current is not None and current in why:
        keep(store.manifest(current).parent, "parent of current")
    for version in _loaded(store, home):
        keep(version, "loaded in vLLM")
    keep(store.best(), "best")
    evaluations = {v: manifest.evaluation for v, manifest in made.items() if manifest and manifest.evaluation}
    for run in sorted({evaluation.run for evaluation in evaluations.values()}):
        keep(best_of(evaluations, run), f"best of run {run}")
    for version in store.pinned():
        keep(version, "pinned")
    for run, begun_with in _begun_with(store.name, epochs):
        keep(begun_with, f"run {run}")
    unfinished = {(e.run, e.epoch) for e in epochs if e.mode == "train" and not e.recorded}
    for version, manifest in made.items():
        if manifest is not None and (manifest.run, manifest.epoch) in unfinished:
            keep(version, f"run {manifest.run}")
    keep(versions[-1], "newest")
    for version in versions if keep_every else []:
        if int(version[1:]) % (keep_every or 1) == 0:
            keep(version, f"every {keep_every}")
    for version, manifest in made.items():
        for reason in named.get((version, manifest.digest), []) if manifest else []:
            keep(version, reason)
    for version, reasons in why.items():
        if reasons:
            found.kept[version] = reasons
        else:
            folder, manifest = store.path(version), made[version]
            found.gone[version] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            if manifest is not None:
                found.digests[version] = manifest.digest
    return found


def _manifest(store: PolicyStore, version: str) -> Manifest | None:
    try:
        return store.manifest(version)
    except StoreError as error:
        log.warning("%s of %s is looked at without its manifest: %s", version, store.name, error)
        return None


def _loaded(store: PolicyStore, home: Path) -> Iterator[str]:
    """Yield the versions that a vLLM of this home holds: when it dies it is started again with them."""
    for vllm in VllmServer.all_known(home):
        for folder in map(Path, (vllm.state.weights, *vllm.state.adapters.values())):
            if folder.parent == store.folder.resolve():
                yield folder.name


def _begun_with(policy: str, epochs: list[EpochManifest]) -> list[tuple[str, str | None]]:
    """Return (run, version) for what epochs that are still needed began with, sampled from and made.

    These are every run's newest finished epoch, and the epochs and evaluations that are not finished. An evaluation is
    finished with its tables: one that stands beside a run (`evaluate --version`) is never recorded.
    """
    training = [e for e in epochs if e.mode == "train"]
    newest = {e.run: e.epoch for e in sorted(training, key=lambda e: e.epoch) if e.recorded}
    found: list[tuple[str, str | None]] = []
    for e in epochs:
        last = e.mode == "train" and newest.get(e.run) == e.epoch
        if last or not (e.recorded or (e.mode == "evaluate" and "sequences" in e.stages)):
            found += [(e.run, begun.get(policy)) for begun in (e.versions, e.sampled, e.ended_with)]
    return found


def _remove(folder: Path) -> None:
    gone = folder.with_name(f".gone-{folder.name}-{secrets.token_hex(4)}")
    rename(folder, gone)
    shutil.rmtree(gone)
