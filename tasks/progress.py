"""Progress of long stages: a line in the log every few seconds and a progress artifact in the Prefect UI."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

_EVERY_S, _LAST_S = 5.0, 5.0
_shared: dict[str, Progress] = {}
_shared_lock = threading.Lock()


def logger() -> Any:
    """The run's logger inside a flow or task, a plain one elsewhere."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("lightning_flows")


def say(stage: str) -> Callable[[str], None]:
    """A function that logs what a stage says of itself."""
    log = logger()
    return lambda text: log.info("%s: %s", stage, text)


class Progress:
    """Counts towards a total, from any thread. Artifact updates never fail the work they report on."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = max(total, 1)
        self._done = 0
        self._note = ""
        self._lock = threading.Lock()
        self._began = self._said = time.monotonic()
        self._logger = logger()
        self._artifact: UUID | None = None
        self._context = copy_context() if FlowRunContext.get() or TaskRunContext.get() else None
        self._showing: threading.Thread | None = None
        self._show(0.0, what)

    @classmethod
    def shared(cls, what: str, total: int) -> Progress:
        """The one progress of this name in this process: several shards count towards it."""
        with _shared_lock:
            if what not in _shared or _shared[what].finished:
                _shared[what] = cls(what, total)
            return _shared[what]

    @property
    def finished(self) -> bool:
        return self._done >= self._total

    def add(self, count: int = 1, note: str = "") -> None:
        """So many more are done."""
        self._update(count, 0, note)

    def at(self, done: int, note: str = "") -> None:
        """So many are done."""
        self._update(0, done, note)

    def _update(self, count: int, done: int, note: str) -> None:
        with self._lock:
            self._done = max(self._done + count, done)
            self._note = note or self._note
            now = time.monotonic()
            if now - self._said < _EVERY_S and self._done < self._total:
                return
            self._said = now
            line = f"{self._what}: {self._done}/{self._total} in {now - self._began:.0f} s"
            self._logger.info(line + (f", {self._note}" if self._note else ""))
            self._show(min(100.0, 100.0 * self._done / self._total), line, last=self.finished)

    def _show(self, share: float, line: str, last: bool = False) -> None:
        """In a thread of its own: Prefect's client waits a minute for a server that is away, and the work must not."""
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
                key = re.sub(r"[^a-z0-9]+", "-", self._what.lower()).strip("-")
                made = create_progress_artifact(progress=share, key=key, description=line)
                self._artifact = cast(UUID, made)
            else:
                update_progress_artifact(artifact_id=self._artifact, progress=share, description=line)
        except Exception as error:  # noqa: BLE001 - a Prefect server that is away must not stop an epoch
            self._logger.debug("no progress artifact for %s: %s", self._what, error)
