"""Versions of a policy on disk: `policies/<name>/v0000/`, `v0001/`, …

Invariant: a folder called `vNNNN` is complete and never changes. It comes into being by one rename, after its files and
its `manifest.json` are on disk. `v0000` is the base: hard links to the model folder, or, for LoRA, a manifest alone
("no adapter"). `current` is a small file that names the version being served; it is swapped by rename.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_core.files import fsync, write_atomic

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
BASE_VERSION = "v0000"
_VERSION = re.compile(r"v\d{4,}")


class StoreError(RuntimeError):
    """A version that is missing, damaged or cannot be published; the message names file and remedy."""


class PublishConflict(StoreError):
    """Another publisher took the version number between our look and our rename. Publishing again is safe."""


class FileDigest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int
    blake3: str


class Lineage(BaseModel):
    """What a publisher knows about a version: where it comes from and how it was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str | None = None
    epoch: int | None = None
    kind: Literal["full", "lora"] = "full"
    base_model: str
    parent: str | None = None  # the version training began with
    settings_digest: str | None = None
    sequences_digest: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Manifest(Lineage):
    policy: str
    version: str
    files: dict[str, FileDigest] = Field(description="path relative to the version's folder → size (bytes) and digest")
    created_ns: int


class PolicyStore:
    """The versions of the policy `name` under `home/policies/<name>`."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.folder = home / "policies" / name

    def versions(self) -> list[str]:
        """Published versions, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [
            entry.name
            for entry in self.folder.iterdir()
            if _VERSION.fullmatch(entry.name) and (entry / MANIFEST).is_file()
        ]
        return sorted(found, key=_number)

    def latest(self) -> str | None:
        """The newest version, or None before the base was published."""
        versions = self.versions()
        return versions[-1] if versions else None

    def path(self, version: str) -> Path:
        """The folder of a published version (absolute). Raises StoreError where there is none."""
        folder = self.folder / version
        if not _VERSION.fullmatch(version) or not (folder / MANIFEST).is_file():
            raise StoreError(
                f"policy {self.name}: no version {version!r} in {self.folder}; there are {self.versions() or 'none'}"
            )
        return folder.resolve()

    def manifest(self, version: str) -> Manifest:
        file = self.path(version) / MANIFEST
        try:
            return Manifest.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise StoreError(f"{file}: not a manifest: {error}. Publish the version again") from None

    def current(self) -> str | None:
        """The version being served, or None where none was set."""
        try:
            return (self.folder / "current").read_text().strip()
        except FileNotFoundError:
            return None

    def set_current(self, version: str) -> None:
        """Atomically say that `version` is being served. Raises StoreError for a version that was not published."""
        self.path(version)
        write_atomic(self.folder / "current", f"{version}\n".encode())

    def published(self, run: str, epoch: int) -> list[str]:
        """Versions that (run, epoch) published, oldest first: one, unless a resumed epoch trained other weights."""
        found = []
        for version in self.versions():
            manifest = self.manifest(version)
            if (manifest.run, manifest.epoch) == (run, epoch):
                found.append(version)
        return found

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
        self.folder.mkdir(parents=True, exist_ok=True)
        work = self.folder / f".base-{secrets.token_hex(4)}"
        work.mkdir()
        try:
            if kind == "full":
                for file in sorted(model_folder.iterdir()):
                    if file.is_file() and not file.name.startswith(".") and file.name != MANIFEST:
                        _link_or_copy(file.resolve(), work / file.name)
            return self._publish(work, Lineage(base_model=base_model, kind=kind), BASE_VERSION)
        except PublishConflict:
            return BASE_VERSION
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def publish(self, folder: Path, lineage: Lineage) -> str:
        """Turn a finished output folder into the next version and return its name; `folder` is moved, not copied.

        `folder` must be on the file system of the store. Where (run, epoch) published identical files already – a
        resumed epoch – that version is returned and nothing is replaced (nor is `folder` touched). Raises
        PublishConflict where another publisher won the number, StoreError for an empty folder or another file system.
        """
        latest = self.latest()
        if latest is None:
            raise StoreError(f"policy {self.name}: publish its base ({BASE_VERSION}) before {folder}")
        files = digest_files(folder)
        if not files:
            raise StoreError(f"{folder}: nothing to publish, the folder is empty or missing; did training finish?")
        if lineage.run is not None and lineage.epoch is not None:
            for version in self.published(lineage.run, lineage.epoch):
                if self.manifest(version).files == files:
                    return version
                log.warning(
                    "epoch %s of run %s was published as %s with other weights", lineage.epoch, lineage.run, version
                )
        if lineage.parent is not None:
            self.path(lineage.parent)
        return self._publish(folder, lineage, f"v{_number(latest) + 1:04d}", files)

    def verify(self, version: str) -> None:
        """Hash the files again. Raises StoreError that names the first file that is missing, changed or too many."""
        folder, manifest = self.path(version), self.manifest(version)
        found = digest_files(folder)
        for name, expected in manifest.files.items():
            if name not in found:
                raise StoreError(
                    f"{folder / name}: missing, though the manifest of {version} lists it; restore it or use another version"
                )
            if found[name] != expected:
                raise StoreError(
                    f"{folder / name}: its content is not what was published as {version}; use another version"
                )
        extra = sorted(found.keys() - manifest.files.keys())
        if extra:
            raise StoreError(f"{folder / extra[0]}: was not published with {version}; remove it")

    def _publish(self, folder: Path, lineage: Lineage, version: str, files: dict[str, FileDigest] | None = None) -> str:
        files = digest_files(folder) if files is None else files
        manifest = Manifest(
            **lineage.model_dump(), policy=self.name, version=version, files=files, created_ns=time.time_ns()
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        for name in [*files, MANIFEST]:
            fsync(folder / name)
        for inner in [entry for entry in folder.rglob("*") if entry.is_dir()]:
            fsync(inner)
        fsync(folder)
        target = self.folder / version
        try:
            # Refused by the system where the target is a folder with something in it: of two publishers one wins.
            os.rename(folder, target)
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
        fsync(self.folder)
        log.info("policy %s: published %s (%s, parent %s)", self.name, version, lineage.kind, lineage.parent)
        return version


def digest_files(folder: Path) -> dict[str, FileDigest]:
    """Size and BLAKE3 of every file below `folder` but the manifest, by relative path, sorted."""
    digests = {}
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if file.is_file() and file.name != MANIFEST:
            hasher = blake3(max_threads=blake3.AUTO)
            hasher.update_mmap(file)
            digests[file.relative_to(folder).as_posix()] = FileDigest(
                size=file.stat().st_size, blake3=hasher.hexdigest()
            )
    return digests


def _number(version: str) -> int:
    return int(version[1:])


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        log.debug("%s: cannot be linked (%s), copying", source, error)
        shutil.copyfile(source, target)
