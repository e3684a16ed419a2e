"""A disk that loses power: what Python asked the system to write, and what of it is there after a cut anywhere.

`recorded(root)` notes the calls below a folder while real code runs: entries made, renamed and removed, and what was synced, with
the bytes a file had then. `Disk.after(cut)` gives the files as a cut before call `cut` may leave them: of a folder the entries as
of its last sync, with any of the later changes; of a file the bytes of its last sync, with any sectors of what was being written.
What nobody synced may be anything in between, or nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

_SECTOR = 512


@dataclass
class File:
    """`synced` and `seen`: (number of the call, bytes) at each sync, and where it was renamed without one.

    `at_once`: calls that wrote and synced in one, so nothing of it is there before.
    """

    synced: list[tuple[int, bytes]] = field(default_factory=list)
    seen: list[tuple[int, bytes]] = field(default_factory=list)
    at_once: set[int] = field(default_factory=set)

    def after(self, cut: int, chance: random.Random) -> bytes:
        sure = next((content for call, content in reversed(self.synced) if call < cut), b"")
        begun = ((call, content) for call, content in sorted(self.synced + self.seen) if call >= cut)
        coming = next((content for call, content in begun if call == cut or call not in self.at_once), sure)
        if not coming and self.seen:
            coming = self.seen[-1][1]
        kept = chance.choice((0.0, 0.5, 1.0))
        length = len(coming) if chance.random() < kept else chance.choice((len(sure), max(len(sure), len(coming) // 2)))
        whole = bytearray(max(length, 0))
        for at in range(0, length, _SECTOR):
            source = coming if chance.random() < kept else sure
            piece = source[at : min(at + _SECTOR, length)]
            whole[at : at + len(piece)] = piece
        return bytes(whole)


@dataclass
class Folder:
    now: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[tuple[int, dict[str, File | Folder | None]]] = field(default_factory=list)  # one call's, together
    synced: list[int] = field(default_factory=list)

    def change(self, call: int, changed: dict[str, File | Folder | None]) -> None:
        self.changes.append((call, changed))
        for name, node in changed.items():
            if node is None:
                self.now.pop(name, None)
            else:
                self.now[name] = node

    def after(self, cut: int, chance: random.Random) -> dict[str, File | Folder]:
        sure = max((call for call in self.synced if call < cut), default=-1)
        entries: dict[str, File | Folder] = {}
        kept = chance.choice((0.0, 0.5, 1.0))
        for call, changed in self.changes:
            if call <= sure or (call < cut and chance.random() < kept):
                for name, node in changed.items():
                    if node is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = node
        return entries


class Disk:
    """What happened below `root`. `calls` counts; `said` are the marks of the test, each with the call it came after."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.tree = Folder()
        self.calls = 0
        self.said: list[tuple[int, Any]] = []
        self.lock = threading.RLock()

    def say(self, what: Any) -> None:
        with self.lock:
            self.said.append((self.calls, what))

    def after(self, cut: int, into: Path, chance: random.Random) -> list[Any]:
        """Write the files as a cut before call `cut` may leave them; returns what had been said by then."""
        self._write(self.tree, cut, into, chance)
        return [what for call, what in self.said if call < cut]

    def _write(self, folder: Folder, cut: int, into: Path, chance: random.Random) -> None:
        into.mkdir(exist_ok=True)
        for name, node in folder.after(cut, chance).items():
            if isinstance(node, Folder):
                self._write(node, cut, into / name, chance)
            else:
                (into / name).write_bytes(node.after(cut, chance))

    def place(self, path: Any, folder: int | None = None) -> tuple[Folder, str] | None:
        """The folder that has this path's entry, and its name there; None outside."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.abspath(path)
        if not path.startswith(f"{self.root}{os.sep}") or path.endswith(" (deleted)"):
            return None
        here, *above = reversed(Path(path).relative_to(self.root).parts)
        node: File | Folder = self.tree
        for part in reversed(above):
            if not isinstance(node, Folder) or part not in node.now:
                return None
            node = node.now[part]
        return (node, here) if isinstance(node, Folder) else None

    def entry(self, path: Any, folder: int | None = None) -> File | Folder | None:
        """The node of a path; one that other code than Python's made is entered now."""
        place = self.place(path, folder)
        if place is None:
            return self.tree if isinstance(path, str | os.PathLike) and Path(path).resolve() == self.root else None
        parent, name = place
        if name not in parent.now:
            parent.change(self.calls, {name: Folder() if os.path.isdir(path) else File()})
        return parent.now[name]

    def sync(self, descriptor: int, at_once: bool = False) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        node = self.tree if path == str(self.root) else self.entry(path)
        if isinstance(node, Folder):
            node.synced.append(self.calls)
        elif node is not None:
            node.synced.append((self.calls, Path(path).read_bytes()))
            if at_once:
                node.at_once.add(self.calls)


@contextlib.contextmanager
def recorded(root: Path) -> Iterator[Disk]:
    """Note what is asked of the system below `root`, an empty folder."""
    disk = Disk(root)
    real = {name: getattr(os, name) for name in ("open", "mkdir", "unlink", "rmdir", "rename", "replace", "link")}
    writes = {name: getattr(os, name) for name in ("fsync", "pwrite", "pwritev", "ftruncate")}
    synced_writes: set[int] = set()

    def noted(name: str, note: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            with disk.lock:
                before = _existed(args, more) if name == "open" else False
                result = (real | writes)[name](*args, **more)
                note(result, before, *args, **more)
                return result

        return call

    def _existed(args: Any, more: Any) -> bool:
        place = disk.place(args[0], more.get("dir_fd"))
        return place is None or place[1] in place[0].now

    def opened(descriptor: int, existed: bool, path: Any, flags: int, *_: Any, **more: Any) -> None:
        synced_writes.discard(descriptor)
        place = disk.place(path, more.get("dir_fd"))
        if place is None:
            return
        if not existed and flags & os.O_CREAT:
            disk.calls += 1
            place[0].change(disk.calls, {place[1]: File()})
        if flags & os.O_DSYNC:
            synced_writes.add(descriptor)

    def made(_: Any, __: bool, path: Any, *___: Any, **more: Any) -> None:
        if (place := disk.place(path, more.get("dir_fd"))) is not None:
            disk.calls += 1
            place[0].change(disk.calls, {place[1]: Folder()})

    def removed(_: Any, __: bool, path: Any, **more: Any) -> None:
        if (place := disk.place(path, more.get("dir_fd"))) is not None and place[1] in place[0].now:
            disk.calls += 1
            place[0].change(disk.calls, {place[1]: None})

    def renamed(_: Any, __: bool, source: Any, target: Any, **___: Any) -> None:
        here, there = disk.place(source), disk.place(target)
        if here is None or there is None:
            return
        disk.calls += 1
        node = here[0].now.get(here[1]) or (Folder() if os.path.isdir(target) else File())
        if isinstance(node, File):
            node.seen.append((disk.calls, Path(target).read_bytes()))
        if here[0] is there[0]:
            here[0].change(disk.calls, {here[1]: None, there[1]: node})
        else:
            there[0].change(disk.calls, {there[1]: node})
            here[0].change(disk.calls, {here[1]: None})

    def linked(_: Any, __: bool, source: Any, target: Any, **___: Any) -> None:
        there = disk.place(target)
        if there is not None:
            disk.calls += 1
            node = (
                disk.entry(source) if disk.place(source) is not None else File(synced=[(0, Path(source).read_bytes())])
            )
            there[0].change(disk.calls, {there[1]: node})

    def synced(_: Any, __: bool, descriptor: int) -> None:
        disk.calls += 1
        disk.sync(descriptor)

    def written(_: Any, __: bool, descriptor: int, *___: Any) -> None:
        if descriptor in synced_writes:
            disk.calls += 1
            disk.sync(descriptor, at_once=True)

    notes: dict[str, Callable[..., Any]] = {
        "open": opened,
        "mkdir": made,
        "unlink": removed,
        "rmdir": removed,
        "rename": renamed,
        "replace": renamed,
    }
    notes |= {"link": linked, "fsync": synced, "pwrite": written, "pwritev": written}
    with contextlib.ExitStack() as stack:
        for name, note in notes.items():
            stack.enter_context(mock.patch.object(os, name, noted(name, note)))
        yield disk
