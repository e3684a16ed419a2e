"""Versions of a policy on disk: `policies/<name>/v0000/`, `v0001/`, …

Invariant: a folder called `vNNNN` is complete and its weights never change. It comes into being by one rename, after its
files and its `manifest.json` are on disk, and goes by one (prune.py). `v0000` is the base: hard links to the model
folder, or, for LoRA, a manifest alone ("no adapter"). `current` (served) and `best` (highest share of held-out tasks
right) are small files that name a version, `pinned` one that names several, `removed.json` (removed.py) those that are
gone; they are swapped by rename.
"""

from __future__ import annotations

import errno
import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

from lightning_core.files import fsync, is_full_disk, link_or_copy, locked, make_folder, rename, write_atomic
from lightning_core.home_format import require_readable
from lightning_core.policies.fit import misfit
from lightning_core.policies.removed import removals, why_gone
from lightning_core.policies.tensor_files import nonfinite_tensor
from lightning_core.policies.version_manifest import (
    MANIFEST,
    Evaluation,
    FileDigest,
    Lineage,
    Manifest,
    StoreError,
    check_files,
    digest_files,
    is_version,
    read_manifest,
)

__all__ = ["BASE_VERSION", "Evaluation", "Lineage", "Manifest", "PolicyStore", "PublishConflict", "StoreError"]

log = logging.getLogger(__name__)

BASE_VERSION = "v0000"


class PublishConflict(StoreError):
    """Another publisher took the version number between our look and our rename. Publishing again is safe."""


class PolicyStore:
    """The versions of the policy `name` under `home/policies/<name>`."""

    def __init__(self, home: Path, name: str) -> None:
        """Raise HomeError for a home of a newer version."""
        require_readable(home)
        self.name = name
        self.folder = home / "policies" / name

    def versions(self) -> list[str]:
        """Return the published versions, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [
            entry.name for entry in self.folder.iterdir() if is_version(entry.name) and (entry / MANIFEST).is_file()
        ]
        return sorted(found, key=_number)

    def latest(self) -> str | None:
        """Return the newest version, or None before the base was published."""
        versions = self.versions()
        return versions[-1] if versions else None

    def path(self, version: str) -> Path:
        """Return the folder of a published version (absolute). Raises StoreError where there is none."""
        folder = self.folder / version
        if not is_version(version) or not (folder / MANIFEST).is_file():
            if (removal := removals(self.folder).get(version)) is not None:
                raise StoreError(why_gone(self.name, version, removal, self.versions()))
            raise StoreError(
                f"policy {self.name}: no version {version!r} in {self.folder}; there are {self.versions() or 'none'}"
            )
        return folder.resolve()

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a version. Raises StoreError where it is unreadable, or another version's."""
        return read_manifest(self.path(version), self.name)

    def checked(self, version: str) -> Path:
        """Verify a version and return its folder: what is served and what is trained from comes through here."""
        self.verify(version)
        return self.path(version)

    def verify(self, version: str, hashes: bool = True) -> None:
        """Check a version: manifest, sizes, digests, and whether it fits its parent. Raises StoreError.

        Without `hashes` no weights are read: changed bytes in a file of the right size go unnoticed.
        """
        folder, manifest = self.path(version), self.manifest(version)
        check_files(folder, manifest, hashes)
        if problem := self._misfit(folder, manifest, version):
            raise StoreError(f"policy {self.name}: {version} does not fit: {problem}; use another version")

    def current(self) -> str | None:
        """Return the version being served, or None where none was set."""
        return self._pointer("current")

    def set_current(self, version: str) -> None:
        """Record atomically that `version` is being served. Raises StoreError for a version that was not published."""
        with self.lock():
            self.path(version)
            write_atomic(self.folder / "current", f"{version}\n".encode())

    def best(self) -> str | None:
        """Return the version with the highest share of held-out tasks right, or None before any evaluation."""
        return self._pointer("best")

    def best_of(self, run: str) -> str | None:
        """Return the best version of those that `run` was the last to evaluate, or None.

        Only those that were evaluated on what the run's newest evaluation was on are compared.
        """
        return best_of(self._evaluations(), run)

    def evaluated(self, version: str, evaluation: Evaluation) -> str:
        """Note an evaluation of `version`, and swap `best` where it is the best now; returns the best version.

        Of equals the older one stays. Only evaluations of one `held_out` are compared, so the first on other tasks
        starts anew.
        """
        with self.lock():
            noted = self.manifest(version).model_copy(update={"evaluation": evaluation})
            write_atomic(self.path(version) / MANIFEST, _json(noted))
            best = _best(self._evaluations(), evaluation.held_out)
            if self._pointer("best") != best:
                write_atomic(self.folder / "best", f"{best}\n".encode())
        return best

    def _evaluations(self) -> dict[str, Evaluation]:
        """Return the latest evaluation of each version that has one, oldest version first."""
        found = {version: self.manifest(version).evaluation for version in self.versions()}
        return {version: evaluation for version, evaluation in found.items() if evaluation is not None}

    def pinned(self) -> list[str]:
        """Return the versions that are never removed, whatever else holds."""
        try:
            return (self.folder / "pinned").read_text().split()
        except FileNotFoundError:
            return []

    def pin(self, version: str, pinned: bool = True) -> None:
        """Pin a version, or take its pin away. Raises StoreError for a version that was not published."""
        with self.lock():
            self.path(version)
            names = sorted({*self.pinned(), version} if pinned else {*self.pinned()} - {version}, key=_number)
            write_atomic(self.folder / "pinned", "".join(f"{name}\n" for name in names).encode())

    def lock(self) -> AbstractContextManager[bool]:
        """Return the lock, over processes, for swapping small files and removing versions. Publishing needs none."""
        return locked(self.folder / ".lock")

    def published(self, run: str, epoch: int) -> list[str]:
        """Return the versions that (run, epoch) published, oldest first.

        It is one, unless a resumed epoch trained other weights.
        """
        made = {version: self.manifest(version) for version in self.versions()}
        return [version for version, manifest in made.items() if (manifest.run, manifest.epoch) == (run, epoch)]

    def publish_base(self, model_folder: Path, base_model: str, kind: Literal["full", "lora"] = "full") -> str:
        """Publish `v0000` from a model folder (kept as it is); returns at once where it exists.

        Raises StoreError where the policy began with another base model: its versions descend from that one.
        """
        if BASE_VERSION in self.versions():
            had = self.manifest(BASE_VERSION)
            if (had.base_model, had.kind) != (base_model, kind):
                raise StoreError(
                    f"policy {self.name}: its versions in {self.folder} descend from {had.base_model} ({had.kind}), "
                    f"the settings ask for {base_model} ({kind}); give the policy another name, or another `home`"
                )
            return BASE_VERSION
        make_folder(self.folder)
        work = self.folder / f".base-{secrets.token_hex(4)}"
        work.mkdir()
        try:
            with self._told_if_full(BASE_VERSION, self.folder):
                if kind == "full":
                    for file in sorted(model_folder.iterdir()):
                        if file.is_file() and not file.name.startswith(".") and file.name != MANIFEST:
                            link_or_copy(file.resolve(), work / file.name)
                _write_out(work)
                return self._publish(work, Lineage(base_model=base_model, kind=kind), BASE_VERSION, _look_through(work))
        except PublishConflict:
            return BASE_VERSION
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def publish(self, folder: Path, lineage: Lineage, synced: bool = True) -> str:
        """Turn a finished output folder into the next version and return its name; `folder` is moved, not copied.

        Without `synced` the weights may be lost with the machine until `sync` has been called; every process sees them.
        `folder` must be on the file system of the store. Where (run, epoch) published identical files already – a
        resumed epoch – that version is returned (nor is `folder` touched), unless a power cut damaged it: then it is
        replaced. Raises PublishConflict where another publisher won the number; StoreError for an empty folder, another
        file system, a full disk, numbers that are not finite, or weights that are no child of the parent's. Nothing is
        published then.
        """
        latest = self.latest()
        if latest is None:
            raise StoreError(f"policy {self.name}: publish its base ({BASE_VERSION}) before {folder}")
        if not any(folder.glob("*")):
            raise StoreError(f"{folder}: nothing to publish, the folder is empty or missing; did training finish?")
        if lineage.parent is not None:
            self.path(lineage.parent)
        following = f"v{_number(latest) + 1:04d}"
        if problem := self._misfit(folder, lineage, following):
            raise StoreError(
                f"policy {self.name}: not published, it does not fit its parent: {problem}; train it again"
            )
        with self._told_if_full(following, folder):
            files = _look_through(folder)
            if synced:
                _write_out(folder)
        if lineage.run is not None and lineage.epoch is not None:
            for version in self.published(lineage.run, lineage.epoch):
                if self.manifest(version).files == files:
                    return self._repaired(version, folder, lineage, files)
                log.warning(
                    "epoch %s of run %s was published as %s with other weights", lineage.epoch, lineage.run, version
                )
        return self._publish(folder, lineage, following, files)

    def sync(self, version: str) -> None:
        """Return when a version is on the disk. Raises StoreError where the disk is full."""
        with self._told_if_full(version, self.folder):
            _write_out(self.path(version))

    def _repaired(self, version: str, folder: Path, lineage: Lineage, files: dict[str, FileDigest]) -> str:
        """Replace `version`, published with the same files, by those of `folder` where it is damaged now; return it."""
        try:
            self.verify(version)
        except StoreError as error:
            log.warning("policy %s: %s is replaced by the same weights, trained again: %s", self.name, version, error)
            aside = self.folder / f".damaged-{secrets.token_hex(4)}"
            rename(self.path(version), aside)
            self._publish(folder, lineage, version, files)
            shutil.rmtree(aside, ignore_errors=True)
        return version

    def _pointer(self, name: str) -> str | None:
        """Return the version that a small file names, or None where there is no such file.

        Raises StoreError where it names none; that the version exists is not checked.
        """
        file = self.folder / name
        try:
            version = file.read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        if not is_version(version):
            raise StoreError(f"{file}: {version[:40]!r} is no version; write one of {self.versions()} into it")
        return version

    def _misfit(self, folder: Path, lineage: Lineage, version: str) -> str | None:
        """Compare with the parent, or with the base where the parent was removed or is damaged itself."""
        if version == BASE_VERSION:
            return None
        for like in (lineage.parent, BASE_VERSION):
            try:
                manifest = self.manifest(str(like))
                check_files(self.path(manifest.version), manifest, hashes=False)
            except StoreError as error:
                log.debug("%s is not compared with %s: %s", version, like, error)
                continue
            if manifest.kind != lineage.kind:
                return f"it is of kind `{lineage.kind}`, {like} of kind `{manifest.kind}`"
            return misfit(folder, self.path(manifest.version) if manifest.files else None)
        return misfit(folder, None)

    def _publish(self, folder: Path, lineage: Lineage, version: str, files: dict[str, FileDigest]) -> str:
        """Publish `folder`, which holds `files`. The manifest is on the disk before they have the version's name."""
        manifest = Manifest(
            **lineage.model_dump(), policy=self.name, version=version, files=files, created_ns=time.time_ns()
        )
        target = self.folder / version
        with self._told_if_full(version, folder):
            try:
                (folder / MANIFEST).write_bytes(_json(manifest))
                fsync(folder / MANIFEST)
                fsync(folder)
                # Refused by the system where the target is a folder with something in it: of two publishers one wins.
                rename(folder, target)
            except OSError as error:
                (folder / MANIFEST).unlink(missing_ok=True)
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise PublishConflict(
                        f"policy {self.name}: {version} was published by another process meanwhile; {folder} is untouched, publish it again"
                    ) from None
                if error.errno == errno.EXDEV:
                    raise StoreError(
                        f"{folder} is on another file system than {self.folder}; write training output under `home`"
                    ) from None
                raise
        log.info("policy %s: published %s (%s, parent %s)", self.name, version, lineage.kind, lineage.parent)
        return version

    @contextmanager
    def _told_if_full(self, version: str, folder: Path) -> Iterator[None]:
        """Raise StoreError where the disk of `folder` fills up within the block, in which `version` is written."""
        try:
            yield
        except OSError as error:
            if not is_full_disk(error):
                raise
            raise StoreError(
                f"policy {self.name}: {version} was not published, the disk of {folder} is full; free some "
                "(`lightning-flows policies prune` removes versions nothing needs) and run the same command again"
            ) from error


def _look_through(folder: Path) -> dict[str, FileDigest]:
    """Return the digests of all files. Raises StoreError for weights with inf or NaN."""
    with ThreadPoolExecutor(1) as pool:
        broken = pool.submit(nonfinite_tensor, folder)
        files = digest_files(folder)
        if found := broken.result():
            raise StoreError(
                f"{folder}: not published, it holds numbers that are not finite ({found}); where training diverged, "
                "lower `learning_rate`"
            )
    return files


def _write_out(folder: Path) -> None:
    """Return when all that is in `folder` is on the disk."""
    for inner in sorted(folder.rglob("*"), key=Path.is_dir):  # a folder's entries after what they name
        fsync(inner)
    fsync(folder)


def _json(manifest: Manifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def _number(version: str) -> int:
    return int(version[1:])


def best_of(evaluations: dict[str, Evaluation], run: str) -> str | None:
    """Return what PolicyStore.best_of does, of `evaluations` by version, oldest first."""
    own = {version: evaluation for version, evaluation in evaluations.items() if evaluation.run == run}
    return _best(own, max(own.values(), key=lambda evaluation: evaluation.epoch).held_out) if own else None


def _best(evaluations: dict[str, Evaluation], held_out: str) -> str:
    """Return the version with the highest share right among those evaluated on `held_out`; of equals the first."""
    compared = [version for version, evaluation in evaluations.items() if evaluation.held_out == held_out]
    return max(compared, key=lambda version: evaluations[version].right)
