"""Which versions of a policy were removed, when and by whom: `policies/<name>/removed.json`.

Written before the files go, so that whoever asks for such a version gets its name, the rule and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lightning_core.files import write_atomic
from lightning_core.policies.version_manifest import StoreError

_FILE = "removed.json"


class Removal(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    at: str  # date and time, with the zone
    by: str  # the run or command
    keep_every: int | None
    digest: str | None  # of its files; None where its manifest was unreadable

    def __str__(self) -> str:
        return f"removed on {self.at} by {self.by} (`store.keep_every: {self.keep_every or 'null'}`: nothing needed it)"


_Removals = TypeAdapter(dict[str, Removal])


def removals(folder: Path) -> dict[str, Removal]:
    """Return the removals of the policy in `folder`, by version. Raises StoreError where the file is unreadable."""
    file = folder / _FILE
    try:
        return _Removals.validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise StoreError(f"{file}: not a list of removed versions ({error.errors()[0]['msg']}); remove it") from None


def note_removals(folder: Path, gone: dict[str, Removal]) -> None:
    """Add versions that are about to be removed. The caller holds the store's lock."""
    write_atomic(folder / _FILE, _Removals.dump_json(removals(folder) | gone, indent=1))


def why_gone(policy: str, version: str, removal: Removal, kept: Iterable[str]) -> str:
    """Return the message for whoever asks for a version that was removed."""
    return (
        f"policy {policy}: {version} was {removal}; {nearest(version, kept)}. "
        "`store: {keep_every: 1}` in the settings keeps all that are trained from now on, "
        f"`lightning-flows policies pin {policy} VERSION` one"
    )


def nearest(version: str, kept: Iterable[str]) -> str:
    """Return the kept versions before and after `version`, in words."""
    by_number = sorted((int(name[1:]), name) for name in kept)
    older = [name for number, name in by_number if number < int(version[1:])]
    newer = [name for number, name in by_number if number > int(version[1:])]
    return f"the nearest that are kept: {' and '.join(older[-1:] + newer[:1]) or 'none'}"
