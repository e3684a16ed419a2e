"""What Linux offers to find and end every process of an attempt, also those that left its process group.

The zygote is a *subreaper*: a process whose parent ends becomes the zygote's child, wherever it was in the tree. So
after the first process of an attempt has ended, what is left of the attempt hangs below the zygote, and is told from
other attempts by one of three marks: its session (the leader made one), its name (forks keep the leader's), or
`LIGHTNING_ATTEMPT_ID` in the environment it was started with (programs keep that).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

from lightning_core import names

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def become_subreaper() -> None:
    """Orphans below this process become its children."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent(parent: int) -> None:
    """This process gets SIGKILL when the thread that forked it ends; at once where `parent` has gone already."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def mark(attempt_id: str) -> None:
    """Name this process after its attempt; children that are forked without exec keep the name."""
    if _libc is not None:
        _libc.prctl(_PR_SET_NAME, _name(attempt_id), 0, 0, 0)


def signal_group(leader: int, number: int) -> None:
    """Send a signal to the process group of `leader`; one that has gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def end_orphans(leader: int, attempt_id: str, running: Collection[int]) -> int:
    """End the children of this process that an ended attempt left behind, and theirs: how many there were.

    `running` are the leaders of other attempts. Waits up to a second for processes the kernel holds on to.
    """
    ended = 0
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        left = [pid for pid in _children() if pid not in running and belongs_to(pid, leader, attempt_id)]
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:  # their children become ours once they are gone
            ended += _reap(pid, deadline)
    return ended


def end_all(attempts: Collection[tuple[int, str]]) -> None:
    """End what is left of attempts whose zygote has gone, looking through all processes of the machine.

    Returns when none is left, after a second at the latest.
    """
    for leader, _ in attempts:
        signal_group(leader, signal.SIGKILL)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        others = [pid for pid in _every_process() if pid != os.getpid()]
        left = [pid for pid in others if any(belongs_to(pid, *attempt) for attempt in attempts) and _alive(pid)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def belongs_to(pid: int, leader: int, attempt_id: str) -> bool:
    """Whether a process carries one of the three marks of an attempt."""
    try:
        if os.getsid(pid) == leader:
            return True
        proc = Path(f"/proc/{pid}")
        if (proc / "comm").read_bytes().rstrip(b"\n") == _name(attempt_id):
            return True
        mine = f"{names.ENV_ATTEMPT_ID}={attempt_id}".encode()
        return mine in (proc / "environ").read_bytes().split(b"\0")
    except OSError:
        return False  # gone, or another user's


def end_children() -> None:
    """End all children of this process, known or not."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and (left := _children()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            _reap(pid, deadline)


def _name(attempt_id: str) -> bytes:
    return f"lf-{attempt_id}".encode()[:15]


def _reap(pid: int, deadline: float) -> bool:
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        time.sleep(0.002)
    return False


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:  # a kernel without that file
        return [pid for pid in _every_process() if _parent(pid) == os.getpid()]


def _every_process() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _alive(pid: int) -> bool:
    return _stat(pid)[0] not in ("Z", "X")


def _stat(pid: int) -> list[str]:
    """State, parent and more, as `/proc/<pid>/stat` has them behind the name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]
