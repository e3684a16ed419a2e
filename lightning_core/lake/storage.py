"""The lake on object storage: what was decoded and derived, at any URL that fsspec opens, for readers on any machine.

    s3://bucket/prefix/spans/….parquet       the files that the manifests name, each written once
    s3://bucket/prefix/derived/….parquet
    s3://bucket/prefix/manifests/….json
    s3://bucket/prefix/published.json        what lies there, and what no longer counts
    s3://bucket/prefix/catalog.duckdb        views over these files by their URLs: put last, as one object

Whoever reads begins with the catalog, so sees one publication or the next. The spool and what is being written stay local.
One home at a time publishes there: its id is in published.json, which is replaced only as it was read (S3's conditional writes).
Another home takes the lake over by `fetch`; from then on the former one is refused. Keys and endpoint come from the environment,
as fsspec's file system of that URL reads them (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, … for s3).
"""

from __future__ import annotations

import contextlib
import secrets
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

from lightning_core import home_format
from lightning_core.digests import digest, table_digest
from lightning_core.files import locked, make_folder, put_in_place, write_atomic
from lightning_core.lake import catalog
from lightning_core.lake.compact import GRACE_S
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError, Manifests, Retired

_PUBLISHED = "published.json"
_HOME_ID = "home-id"  # in the lake's folder, of a home that publishes


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
    home: str | None = None  # that publishes there; null: of an older version


def publish(lake: Lake, url: str, grace_s: float = GRACE_S) -> Publication:
    """Put at `url` what the lake has and the URL has not, then the catalog; remove what has not counted for `grace_s`.

    One publication of a lake at a time. Raises LakeError, also where another home has the lake there; what was
    published before stays.
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
        files = {path: (lake.root / path).stat().st_size for path in sorted(manifests.files())}
        with _opened(url) as (store, prefix):
            listing = _ListingFile(store, f"{prefix}/{_PUBLISHED}", _home_id(lake))
            if listing.read().home is None:
                listing.put(listing.content)  # claimed, before anything else is put there
            elif listing.content.home != listing.home:
                raise LakeError(
                    f"{url} has the lake of another home, which would be lost: publish to another URL, or go on with that lake in an "
                    f"empty home: `lightning-flows lake fetch --from {url} --home NEW`"
                )
            return _put(store, prefix, lake.root, folder, files, grace_s, listing)


def fetch(lake: Lake, url: str) -> Publication:
    """Bring a published lake into a home that has none, file by file as it was published.

    This home publishes it from then on. Policies and what was not published yet are not there. Raises LakeError: a home
    with a lake, a file that is not what its manifest says.
    """
    url = url.rstrip("/")
    if lake.manifests.spans().decoded_offset or lake.manifests.epochs():
        raise LakeError(f"{lake.root}: this home has a lake already; fetch into an empty one (--home)")
    with _opened(url) as (store, prefix):
        listing = _ListingFile(store, f"{prefix}/{_PUBLISHED}", _home_id(lake))
        if not listing.read().files:
            raise _nothing(url)
        # First, so that what the former home publishes meanwhile is refused, or is a whole publication before this.
        listing.put(listing.content)
        made = lake.root / "fetching" / "manifests"
        for path in store.find(f"{prefix}/manifests"):
            write_atomic(made / path.removeprefix(f"{prefix}/manifests/"), store.cat_file(path))
        manifests = Manifests(made.parent)
        spans = {file.path: file.digest for file in manifests.spans().files}
        tables = {table.path: table.digest for epoch in manifests.epochs() for table in epoch.tables.values()}
        size = 0
        for path in [*spans, *tables]:
            size += _bring(store, f"{prefix}/{path}", lake.root / path)
            is_of, expected = (digest, spans[path]) if path in spans else (table_digest, tables[path])
            if expected is not None and is_of(lake.root / path) != expected:
                raise LakeError(f"{url}/{path} is not what was written: its digest is not that of its manifest")
        for epoch in manifests.epochs():
            lake.manifests.put_epoch(epoch)
        lake.manifests.put_spans(manifests.spans())  # last: with it there is a lake
        shutil.rmtree(made.parent)
    lake.rebuild_catalog()
    return Publication(len(spans) + len(tables), size)


def bring_spans(lake: Lake, url: str, span_range: tuple[int, int | None]) -> None:
    """Bring the span files of a range of the spool into a folder that is no home.

    Such a folder is a worker's, on a machine that does not share the home.
    In the home itself, where the spool is, nothing is done. Raises LakeError.
    """
    if lake.spool.exists():
        return
    with _opened(url.rstrip("/")) as (store, prefix):
        home_format.begin(lake.root.parent)
        write_atomic(lake.manifests.spans_path, store.cat_file(f"{prefix}/manifests/spans.json"))
        for file in lake.files_between(*span_range):
            if not (lake.root / file.path).exists():
                _bring(store, f"{prefix}/{file.path}", lake.root / file.path)


def _bring(store: AbstractFileSystem, there: str, here: Path) -> int:
    make_folder(here.parent)
    beside = here.with_name(f".{here.name}.{secrets.token_hex(4)}")
    store.get_file(there, str(beside))
    put_in_place(beside, here)
    return here.stat().st_size


def _home_id(lake: Lake) -> str:
    path = lake.root / _HOME_ID
    if not path.exists():
        write_atomic(path, secrets.token_hex(8).encode())
    return path.read_text()


def _put(
    store: AbstractFileSystem, prefix: str, root: Path, folder: Path, files: dict[str, int], grace_s: float,
    listing: _ListingFile,
) -> Publication:  # fmt: skip
    """Put files of the lake in `root`, manifests, then the catalog in `folder`; remove what was retired long ago."""
    now_ns, before = time.time_ns(), listing.content
    new = [path for path, size in files.items() if before.files.get(path) != size]
    for name in new:
        store.put_file(str(root / name), f"{prefix}/{name}")
    retired = {path: Retired(path=path, since_ns=now_ns) for path in before.files}
    retired |= {entry.path: entry for entry in before.retired}
    left = [entry for path, entry in sorted(retired.items()) if path not in files]
    # Listed before the catalog changes, so that a process killed in between leaves no file that is in no list.
    listing.put(_Listing(files=files, retired=left))
    manifests = {f"{prefix}/{path.relative_to(folder)}": path for path in (folder / "manifests").rglob("*.json")}
    for there in store.find(f"{prefix}/manifests"):
        if there not in manifests:  # of a run that was removed
            store.rm_file(there)
    for there, path in sorted(manifests.items()):
        store.put_file(str(path), there)
    store.put_file(str(folder / "catalog.duckdb"), f"{prefix}/catalog.duckdb")
    gone = [entry for entry in left if entry.since_ns <= now_ns - grace_s * 1e9]
    for entry in gone:
        with contextlib.suppress(FileNotFoundError):
            store.rm_file(f"{prefix}/{entry.path}")
    if gone:
        left = [entry for entry in left if entry not in gone]
        listing.put(_Listing(files=files, retired=left))
    return Publication(len(new), sum(files[path] for path in new), len(gone))


@contextlib.contextmanager
def connect(url: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the catalog published at `url`, read-only: views read their files through fsspec. Raises LakeError."""
    url = url.rstrip("/")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "catalog.duckdb"
        with _opened(url) as (store, prefix):
            if not store.exists(f"{prefix}/catalog.duckdb"):
                raise _nothing(url)
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
    """Give the file system of a URL, and the path in it; what the block raises comes out as LakeError."""
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


def _nothing(url: str) -> LakeError:
    return LakeError(
        f"{url}: no lake was published there (`lake.storage`, `lightning-flows lake publish`), or it may not be read"
    )


class _ListingFile:
    """published.json, replaced only as it was read, in the name of `home`: where another one wrote it meanwhile, LakeError."""

    def __init__(self, store: AbstractFileSystem, path: str, home: str) -> None:
        self._store, self._path, self.home = store, path, home
        self.content = _Listing()
        self._tag: str | None = None  # of the content that was read; None where there is none, or the store has no tags

    def read(self) -> _Listing:
        self._store.invalidate_cache()
        try:
            self._tag = self._store.info(self._path).get("ETag")
            self.content = _Listing.model_validate_json(self._store.cat_file(self._path))
        except FileNotFoundError:
            self._tag, self.content = None, _Listing()
        return self.content

    def put(self, listing: _Listing) -> None:
        content = listing.model_copy(update={"home": self.home}).model_dump_json(indent=1).encode()
        only = {}
        if "s3" in self._store.protocol:
            only = {"IfMatch": self._tag} if self._tag else {"IfNoneMatch": "*"}
        try:
            self._store.pipe_file(self._path, content, **only)
            taken = self.read().home != self.home
        except OSError as error:
            if "pre-condition" not in str(error):
                raise
            taken = True
        if taken:
            raise LakeError(f"{self._path}: another home publishes there since; nothing of it was changed")
