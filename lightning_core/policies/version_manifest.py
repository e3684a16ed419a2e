"""What a version says of itself, and whether that is true: `manifest.json`, digests, and the checks against them."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_core.digests import digest
from lightning_core.errors import LightningError
from lightning_core.policies.probe import Probe

MANIFEST = "manifest.json"
_VERSION = re.compile(r"v[0-9]{4,}")


class StoreError(LightningError):
    """A version that is missing, damaged or cannot be published; the message names file and remedy."""


class FileDigest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int = Field(ge=0)
    blake3: str


class Evaluation(BaseModel):
    """The latest evaluation of a version. `held_out` is a digest of what it was evaluated on and how it was graded:
    only results with the same one are compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    epoch: int  # epochs of training before it
    tasks: int
    right: float = Field(ge=0, le=1, description="share of the tasks that were right")
    reward: float
    held_out: str


class Lineage(BaseModel):
    """What a publisher knows about a version: where it comes from and how it was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str | None = None
    epoch: int | None = None
    kind: Literal["full", "lora"] = "full"
    base_model: str
    parent: str | None = None  # the version training began with
    settings_digest: str | None = None
    sequences: str | None = None  # the table it was trained on: its path in the lake, and the digest of the file
    sequences_digest: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    probe: Probe | None = None  # what the trainer computed with these weights; None for the base


class Manifest(Lineage):
    policy: str
    version: str
    files: dict[str, FileDigest] = Field(description="path relative to the version's folder → size (bytes) and digest")
    created_ns: int
    evaluation: Evaluation | None = None  # the one part that is written after publishing

    @property
    def size(self) -> int:
        """Return the size of all files, in bytes."""
        return sum(file.size for file in self.files.values())

    @property
    def digest(self) -> str:
        """Return a digest of names and contents of all files: equal for equal weights, whatever trained them."""
        listed = "".join(f"{name}\0{file.blake3}\n" for name, file in sorted(self.files.items()))
        return blake3(listed.encode()).hexdigest()


def is_version(name: str) -> bool:
    """Return whether `name` is the name of a version: `v0007`. No other text becomes part of a path."""
    return _VERSION.fullmatch(name) is not None


def read_manifest(folder: Path, policy: str) -> Manifest:
    """Return the manifest of the version in `folder`. Raises StoreError where it is unreadable, or of another one."""
    file = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise StoreError(f"{file}: not a manifest ({problem}); {_remedy(folder)}") from None
    lie = _lie(manifest, policy, folder.name)
    if lie:
        raise StoreError(f"{file}: {lie}; {_remedy(folder)}")
    return manifest


def _lie(manifest: Manifest, policy: str, version: str) -> str | None:
    """Return what the manifest says that cannot be true, whatever the files hold; or None."""
    if (manifest.policy, manifest.version) != (policy, version):
        return (
            f"it is the manifest of policy {manifest.policy}, {manifest.version}, and stands in {version} of {policy}"
        )
    parent = manifest.parent
    if parent is not None and not (is_version(parent) and int(parent[1:]) < int(version[1:])):
        return f"it names {parent!r} as the parent of {version}, which is no earlier version"
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or name == MANIFEST:
            return f"it lists {name!r}, which is no file of a version"
    adapter = "adapter_config.json" in manifest.files
    if manifest.files and adapter != (manifest.kind == "lora"):
        return f"it says kind `{manifest.kind}`, and lists {'an adapter' if adapter else 'no adapter_config.json'}"
    return None


def check_files(folder: Path, manifest: Manifest, hashes: bool = True) -> None:
    """Compare the files of a version with its manifest: names and sizes, then digests.

    Raises StoreError that names the first file that is missing, half written, changed or too many.
    """
    there = {name: file.stat().st_size for name, file in _files(folder).items()}
    for name, expected in manifest.files.items():
        if name not in there:
            raise StoreError(f"{folder / name}: missing, though the manifest lists it; {_remedy(folder)}")
        if there[name] != expected.size:
            raise StoreError(
                f"{folder / name}: {there[name]} bytes, published with {expected.size}: half written or replaced; {_remedy(folder)}"
            )
    extra = sorted(there.keys() - manifest.files.keys())
    if extra:
        raise StoreError(f"{folder / extra[0]}: was not published with {manifest.version}; remove this file")
    for name, expected in manifest.files.items() if hashes else ():
        if _digest(folder / name).blake3 != expected.blake3:
            raise StoreError(
                f"{folder / name}: its content is not what was published as {manifest.version}; {_remedy(folder)}"
            )


def digest_files(folder: Path) -> dict[str, FileDigest]:
    """Return size and BLAKE3 of every file below `folder` but the manifest, by relative path, sorted."""
    return {name: _digest(file) for name, file in _files(folder).items()}


def _files(folder: Path) -> dict[str, Path]:
    return {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }


def _digest(file: Path) -> FileDigest:
    return FileDigest(size=file.stat().st_size, blake3=digest(file))


def _remedy(folder: Path) -> str:
    return (
        f"restore {folder.name} (`lightning-flows policies fetch` gets it from the registry) or take another version "
        "(`lightning-flows policies` lists them)"
    )
