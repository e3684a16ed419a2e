"""Whether the files of a lake are what was written: their digests are in the manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_core.digests import digest, table_digest
from lightning_core.lake.manifest import LakeError, SpanFile

if TYPE_CHECKING:
    from lightning_core.lake.lake import Lake

_CHANGED = "its bytes are not those that were written"


@dataclass(frozen=True)
class Unsound:
    """A file that is not what was written, or gone."""

    path: str
    what: str
    spans: int | None = None  # in a span file
    epoch: str | None = None  # whose derived table it is


def require_sound(root: Path, files: Iterable[SpanFile]) -> None:
    """Raise LakeError for the first span file that is not what was written. A process reads each file once for this."""
    for file in files:
        what = what_is_wrong(root, file)
        if what is not None:
            raise LakeError(
                f"{root / file.path}: {what}; put it back from a copy, or `lightning-flows lake repair --home {root.parent}` sets it "
                f"aside and counts its {file.rows:,} spans as lost"
            )


def unsound(lake: Lake) -> Iterator[Unsound]:
    """Yield the span files and derived tables of a lake that are not what was written."""
    for file in lake.manifests.spans().files:
        what = what_is_wrong(lake.root, file)
        if what is not None:
            yield Unsound(file.path, what, spans=file.rows)
    for epoch in lake.manifests.epochs():
        for table in epoch.tables.values():
            try:
                what = None if table_digest(lake.root / table.path) == table.digest else _CHANGED
            except OSError as error:
                what = str(error.strerror)
            if what is not None:
                yield Unsound(table.path, what, epoch=f"{epoch.named} of run {epoch.run}")


def what_is_wrong(root: Path, file: SpanFile) -> str | None:
    """Return why a span file is not what was written; None where it is."""
    try:
        found = digest(root / file.path)
    except OSError as error:
        return str(error.strerror)
    if file.digest is None or found == file.digest:  # of files from before there were digests nothing is known
        return None
    return _CHANGED
