"""Progress of long stages: a line in the log every few seconds and a progress artifact in the Prefect UI."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, cast
from uuid import UUID
from weakref import WeakSet

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from lightning_core.errors import without_traceback
from lightning_core.events import At, shown

for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
    logging.getLogger(name).addFilter(without_traceback)

_EVERY_S, _LAST_S = 5.0, 5.0
_all: WeakSet[Progress] = WeakSet()
_shared: dict[tuple[str, ...], Progress] = {}
_shared_lock, _all_lock = threading.Lock(), threading.Lock()


def logger() -> Any:
    """Return the run's logger inside a flow or task, a plain one elsewhere."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("lightning_flows")


def say(stage: str) -> Callable[[str], None]:
    """Return a function that logs what a stage reports of itself."""
    log = logger()
    return lambda text: log.info("%s: %s", stage, text, extra=shown())


def counts() -> list[Progress]:
    """Return what this process counts, or has counted and still knows of, oldest first."""
    with _all_lock:
        return sorted(_all, key=lambda progress: progress.began)


class Progress:
    """Counts towards a total, from any thread. Artifact updates never fail the work they report on.

    `of`: the epoch or evaluation that it is of, as people read of it.
    """

    def __init__(self, what: str, total: int, of: str = "") -> None:
        self.what, self.of = what, of
        self._title = f"{of}, {what}" if of else what
        self.total = max(total, 1)
        self.done = 0
        self.note = ""
        self.began = self._said = time.monotonic()
        self._lock = threading.Lock()
        self._logger = logger()
        self._artifact: UUID | None = None
        self._context = copy_context() if FlowRunContext.get() or TaskRunContext.get() else None
        self._showing: threading.Thread | None = None
        with _all_lock:
            _all.add(self)
        self._show(0.0, self._title)

    @classmethod
    def shared(cls, what: str, total: int, of: str, run: str) -> Progress:
        """Return the one progress of this name of a run in this process: several shards count towards it."""
        key = (run, of, what)
        with _shared_lock:
            if key not in _shared or _shared[key].finished:
                _shared[key] = cls(what, total, of)
            return _shared[key]

    @property
    def finished(self) -> bool:
        return self.done >= self.total

    def add(self, count: int = 1, note: str = "") -> None:
        """Count so many more as done."""
        self._update(count, 0, note)

    def at(self, done: int, note: str = "") -> None:
        """Set how many are done, unless more are done already."""
        self._update(0, done, note)

    def _update(self, count: int, done: int, note: str) -> None:
        with self._lock:
            self.done = max(self.done + count, done)
            self.note = note or self.note
            now = time.monotonic()
            if now - self._said < _EVERY_S and not self.finished:
                return
            self._said = now
            line = f"{self._title}: {self.done}/{self.total} in {now - self.began:.0f} s"
            self._logger.info(line + (f", {self.note}" if self.note else ""), extra=shown(At(counted=True)))
            self._show(min(100.0, 100.0 * self.done / self.total), line, last=self.finished)

    def _show(self, share: float, line: str, last: bool = False) -> None:
        """Update the artifact in a thread of its own.

        Prefect's client waits a minute for a server that is away, and the work must not.
        """
        if self._context is None:
            return
        if last and self._showing is not None:
            self._showing.join(_LAST_S)
        if self._showing is not None and self._showing.is_alive():
            return
        self._showing = threading.Thread(target=self._context.run, args=(self._put, share, line), daemon=True)
        self._showing.start()
        if last:
            self._showing.join(_LAST_S)

    def _put(self, share: float, line: str) -> None:
        try:
            if self._artifact is None:
                # Without a key it is on the page of its run alone, not among what the Artifacts page keeps for ever.
                made = create_progress_artifact(progress=share, description=line)
                self._artifact = cast(UUID, made)
            else:
                update_progress_artifact(artifact_id=self._artifact, progress=share, description=line)
        except Exception as error:  # noqa: BLE001 - a Prefect server that is away must not stop an epoch
            self._logger.debug("no progress artifact for %s: %s", self._title, error)
