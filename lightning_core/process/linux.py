"""Processes as Linux shows them: whether one runs, and ending all of a group, or all below this one; and what the processor
can. Standard library alone.

A process is known by its pid and its creation time, since a pid alone may be another's by now.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None)
_SAME_S = 0.05  # the kernel counts in hundredths
_KILL_S = 10.0  # until a process is gone that got SIGKILL
_END_S = 4.0  # until all below a process are gone
_lists_children = os.path.exists("/proc/thread-self/children")  # a choice of who builds the kernel


def become_subreaper() -> None:
    """Make the orphans below this process its children."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent(parent: int) -> None:
    """Have this process get SIGKILL when the thread that forked it ends; at once where `parent` has gone already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class _Stat(NamedTuple):
    state: str
    parent: int
    group: int
    session: int
    created: float  # seconds since the machine started: the same after the clock was set

    @property
    def runs(self) -> bool:
        return self.state not in ("Z", "X")


def _stat(pid: int) -> _Stat | None:
    """Return what /proc says of a process; None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    parent, group, session = map(int, fields[1:4])
    return _Stat(fields[0], parent, group, session, int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def created(pid: int) -> float:
    """Return when a process was created, in seconds since the machine started. Raises ProcessLookupError."""
    found = _stat(pid)
    if found is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return found.created


def is_running(pid: int, started: float) -> bool:
    """Return whether the process that was `created` at `started` still runs; a zombie does not."""
    found = _stat(pid)
    return found is not None and found.runs and abs(found.created - started) < _SAME_S


def group_members(leader: int, started: float) -> list[int]:
    """Return the pids, zombies left out, of the session and group that `leader` opened, even where it has ended."""
    found = _stat(leader)
    if found is not None and abs(found.created - started) >= _SAME_S:
        return []  # the number went to a stranger, which it cannot while a member of our group is left
    return [
        pid
        for pid in _every_process()
        if (found := _stat(pid)) is not None
        and found.group == found.session == leader
        and found.runs
        and found.created >= started - _SAME_S
    ]


def end_group(leader: int, started: float, grace_s: float) -> None:
    """Send SIGTERM to the leader, SIGKILL to what is left of its group after `grace_s`, and wait until all are gone."""
    if is_running(leader, started):
        kill([leader], signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while is_running(leader, started) and time.monotonic() < deadline:
            time.sleep(0.02)
    deadline = time.monotonic() + _KILL_S
    while (members := group_members(leader, started)) and time.monotonic() < deadline:
        kill(members, signal.SIGKILL)
        time.sleep(0.02)


def signal_group(leader: int, number: int) -> None:
    """Send a signal to the process group of `leader`; one that has gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def kill(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes; one that has gone is no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def end_children(but: Collection[int] = ()) -> int:
    """End all below this process, a subreaper, except these children and what is below them; return how many it reaped.

    Waits for a few seconds at most.
    """
    ended, deadline = 0, time.monotonic() + _END_S
    while left := _below(but):
        kill(left, signal.SIGKILL)
        reaped = _reap(left)  # what was below them is a child of this process's now
        ended += reaped
        if time.monotonic() > deadline:
            break
        if not reaped:
            time.sleep(0.002)
    return ended


def reap_orphans(but: int) -> None:
    """Forget the ended children of this process, except that one."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid != but:
            os.waitpid(found.si_pid, 0)


def threads_below() -> int:
    """Return how many threads all processes below this one have; one that ended and was not reaped counts as one."""
    return sum(len(_threads(pid)) for pid in _below())


def _reap(pids: Iterable[int]) -> int:
    reaped = 0
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # its parent has not ended yet
            reaped += os.waitpid(pid, os.WNOHANG)[0] == pid
    return reaped


def _below(but: Collection[int] = ()) -> list[int]:
    """Return the pids of all processes below this one, parents first."""
    found = dict.fromkeys(pid for pid in _children(os.getpid()) if pid not in but)
    for pid in (queue := list(found)):
        further = [child for child in _children(pid) if child not in found]
        found |= dict.fromkeys(further)
        queue += further
    return list(found)


def _children(pid: int) -> list[int]:
    if _lists_children:
        return [child for thread in _threads(pid) for child in _children_of_thread(pid, thread)]
    return [other for other in _every_process() if (stat := _stat(other)) is not None and stat.parent == pid]


def _children_of_thread(pid: int, thread: str) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    except OSError:  # it has gone
        return []


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _every_process() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this processor multiplies bf16 (AVX-512 BF16, AMX, Arm's BF16); others are slower in it."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[1].split())
