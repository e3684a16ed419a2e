"""Processes by (pid, creation time): whether one runs, its memory, and ending its whole group."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import psutil

_SAME_S = 0.05  # the kernel counts in hundredths


def created(pid: int) -> float:
    """When a process was created, in seconds since the machine started. Raises psutil.NoSuchProcess.

    psutil tells it in seconds since 1970, and another number for the same process once the clock was set.
    """
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_running(pid: int, started: float) -> bool:
    """Whether the process that was `created` at `started` still runs; a zombie does not."""
    try:
        return abs(created(pid) - started) < _SAME_S and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def group_members(leader: int, started: float) -> list[psutil.Process]:
    """Processes, zombies left out, of the session and group that `leader` opened, whether or not it lives itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if abs(created(leader) - started) >= _SAME_S:
            return []  # the number went to a stranger, which it cannot while a member of our group is left
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            ours = os.getpgid(process.pid) == leader and os.getsid(process.pid) == leader
            if ours and created(process.pid) >= started - _SAME_S and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def end_group(leader: int, started: float, timeout_s: float) -> None:
    """SIGTERM to the leader, SIGKILL to all that is left of its group after `timeout_s`, and wait until all are gone."""
    members = group_members(leader, started)
    if is_running(leader, started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and is_running(leader, started):
            time.sleep(0.05)
    for process in {*members, *group_members(leader, started)}:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + 10
    while group_members(leader, started) and time.monotonic() < deadline:
        time.sleep(0.05)


def memory_of_tree(pid: int) -> int:
    """Bytes (PSS where the system tells it, else RSS) of a process and its descendants."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                try:
                    info = process.memory_full_info()
                except psutil.AccessDenied:
                    info = process.memory_info()
                total += getattr(info, "pss", info.rss)
    return total
