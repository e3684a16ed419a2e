"""The lake on object storage: what was decoded and derived, at any URL that fsspec opens, for readers on any machine.

    s3://bucket/prefix/spans/….parquet       the files that the manifests name, each written once
    s3://bucket/prefix/derived/….parquet
    s3://bucket/prefix/manifests/….json
    s3://bucket/prefix/published.json        what lies there, and what no longer counts
    s3://bucket/prefix/catalog.duckdb        views over these files by their URLs: put last, as one object

Whoever reads begins with the catalog, so sees one publication or the next. The spool and what is being written stay local.
Keys and endpoint come from the environment, as fsspec's file system of that URL reads them (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, … for s3).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import fsspec
from fsspec.spec import AbstractFileSystem
from pydantic import BaseModel, ConfigDict

from lightning_core.files import locked
from lightning_core.lake import catalog
from lightning_core.lake.compact import GRACE_S
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError, Manifests, Retired

_PUBLISHED = "published.json"


@dataclass(frozen=True)
class Publication:
    """What one publication did."""

    files: int = 0
    bytes: int = 0
    removed: int = 0


class _Listing(BaseModel):
    """published.json"""

    model_config = ConfigDict(extra="forbid")

    files: dict[str, int] = {}  # path → bytes
    retired: list[Retired] = []


def publish(lake: Lake, url: str, grace_s: float = GRACE_S) -> Publication:
    """Put there what the lake has and the URL has not, then the catalog; remove what has not counted for `grace_s`.

    One publication of a lake at a time. Raises LakeError, and what was published before stays.
    """
    url = url.rstrip("/")
    with (
        locked(lake.root / "publish.lock"),
        locked(lake.root / "reading.lock", shared=True),  # what is named stays meanwhile
        tempfile.TemporaryDirectory() as made,
    ):
        folder = Path(made)
        shutil.copytree(lake.root / "manifests", folder / "manifests", ignore=shutil.ignore_patterns("*lock", ".*"))
        manifests = Manifests(folder)
        catalog.build(lake.root, manifests, lake.spool / "rejected", folder, _Here(url, lake.root))
        named = {f.path for f in manifests.spans().files}
        named |= {t.path for epoch in manifests.epochs() for t in epoch.tables.values()}
        files = {path: (lake.root / path).stat().st_size for path in sorted(named)}
        with _opened(url) as (store, prefix):
            return _put(store, prefix, lake.root, folder, files, grace_s)


def _put(
    store: AbstractFileSystem, prefix: str, root: Path, folder: Path, files: dict[str, int], grace_s: float
) -> Publication:
    """Files of the lake in `root`, manifests, then the catalog in `folder`; and away with what is long retired."""
    listing, now_ns = f"{prefix}/{_PUBLISHED}", time.time_ns()
    before = _listing(store, listing)
    new = [path for path, size in files.items() if before.files.get(path) != size]
    for name in new:
        store.put_file(str(root / name), f"{prefix}/{name}")
    manifests = {f"{prefix}/{path.relative_to(folder)}": path for path in (folder / "manifests").rglob("*.json")}
    for there in store.find(f"{prefix}/manifests"):
        if there not in manifests:  # of a run that was removed
            store.rm_file(there)
    for there, path in sorted(manifests.items()):
        store.put_file(str(path), there)
    retired = {path: Retired(path=path, since_ns=now_ns) for path in before.files}
    retired |= {entry.path: entry for entry in before.retired}
    left = [entry for path, entry in sorted(retired.items()) if path not in files]
    # Listed before the catalog changes, so that a process killed in between leaves no file that is in no list.
    store.pipe_file(listing, _Listing(files=files, retired=left).model_dump_json(indent=1).encode())
    store.put_file(str(folder / "catalog.duckdb"), f"{prefix}/catalog.duckdb")
    gone = [entry for entry in left if entry.since_ns <= now_ns - grace_s * 1e9]
    for entry in gone:
        with contextlib.suppress(FileNotFoundError):
            store.rm_file(f"{prefix}/{entry.path}")
    if gone:
        left = [entry for entry in left if entry not in gone]
        store.pipe_file(listing, _Listing(files=files, retired=left).model_dump_json(indent=1).encode())
    return Publication(len(new), sum(files[path] for path in new), len(gone))


@contextlib.contextmanager
def connect(url: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """The catalog published there, read-only: views read their files through fsspec. Raises LakeError."""
    url = url.rstrip("/")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "catalog.duckdb"
        with _opened(url) as (store, prefix):
            if not store.exists(f"{prefix}/catalog.duckdb"):
                raise LakeError(
                    f"{url}: no lake was published there (`lake.storage`, `lightning-flows lake publish`), or it may not be read"
                )
            store.get_file(f"{prefix}/catalog.duckdb", str(file))
        with catalog.opened(file, Path(folder)) as con:
            con.register_filesystem(store)
            yield con


class _Here(AbstractFileSystem):
    """The files of a lake under the URLs they are going to have: a catalog is made before they are there."""

    cachable = False

    def __init__(self, url: str, root: Path) -> None:
        super().__init__()
        self.protocol = url.partition("://")[0]
        self.url = url
        self._root = root

    def _path(self, path: str) -> Path:
        return self._root / path.removeprefix(self.url).removeprefix(self.url.partition("://")[2]).lstrip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": self._path(path).stat().st_size, "type": "file"}

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._path(path).stat().st_mtime, UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return self._path(path).open(mode)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """The file system of a URL, and the path in it; what it raises comes out as LakeError."""
    try:
        store, prefix = fsspec.core.url_to_fs(url)
        store.invalidate_cache()
        yield store, prefix
    except LakeError:
        raise
    except ImportError as error:
        raise LakeError(f"{url}: {error}; `pip install 'lightning-flows[scale]'` has it for s3") from None
    except Exception as error:
        raise LakeError(
            f"{url}: {type(error).__name__}: {error}; is there such a bucket, may it be written, and are its keys in the "
            "environment (for s3 AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)?"
        ) from error


def _listing(store: AbstractFileSystem, path: str) -> _Listing:
    try:
        return _Listing.model_validate_json(store.cat_file(path))
    except FileNotFoundError:
        return _Listing()
