"""No test leaves a process behind, and none takes the machine's memory: one that does fails, by its name.

After the last test of a module and its fixtures, the guard looks for processes that are left. It finds those whose parent is gone,
too: all that a test starts inherits a variable of the environment.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

MOST_BYTES = 2 << 30  # that pytest's own process, where canned servers and small models run, may grow by in one test
_MARK = "LIGHTNING_TESTS"
_GRACE_S = 20.0  # in which processes that were asked to end have to have ended
_EVERY_S = 0.25
_OURS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # Python's own, which end with pytest

_now: tuple[str, int] = ("", 0)  # the test that runs, and the bytes that pytest had before it


def pytest_configure(config: pytest.Config) -> None:
    os.environ[_MARK] = str(os.getpid())
    threading.Thread(target=_watch_memory, args=(config,), name="memory of tests", daemon=True).start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _now
    _now = item.nodeid, psutil.Process().memory_info().rss
    try:
        return (yield)
    finally:
        _now = "", 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    result = yield
    if nextitem is None or nextitem.path != item.path:
        left = _left_behind()
        deadline = time.monotonic() + _GRACE_S
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = _left_behind()
        if left:
            message = "\n".join(map(_describe, left))
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            pytest.fail(f"{item.path.name} left behind:\n{message}", pytrace=False)
    return result


def _left_behind() -> list[psutil.Process]:
    me, mark = psutil.Process(), str(os.getpid())
    descendants = {process.pid for process in me.children(recursive=True)}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == me.pid or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.pid not in descendants and process.environ().get(_MARK) != mark:
                continue
            if not any(part in " ".join(process.cmdline()) for part in _OURS):
                found.append(process)
    return found


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        began = process.environ().get("PYTEST_CURRENT_TEST", "?")
        return f"  {process.pid} {' '.join(process.cmdline())[:200]}, begun in {began}"
    return f"  {process.pid}, gone now"


def _watch_memory(config: pytest.Config) -> None:
    """A thread: what takes the memory may be one too, so the test cannot be failed from outside, only ended."""
    me = psutil.Process()
    while True:
        time.sleep(_EVERY_S)
        name, before = _now
        grown = me.memory_info().rss - before
        if name and grown > MOST_BYTES:
            if (capture := config.pluginmanager.getplugin("capturemanager")) is not None:
                capture.suspend_global_capture()
            message = f"{name} took {grown / 1e9:.1f} GB of memory; {MOST_BYTES / 1e9:.1f} are allowed"
            os.write(2, f"\n{message}\n".encode())
            faulthandler.dump_traceback(2)
            for process in _left_behind():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            os._exit(1)
