"""Starts a vLLM again that ended by itself: killed, out of memory, an engine that died.

A thread of the process that owns the services. vLLM comes back on the same socket, with the version and the adapters it
served; calls that waited at the gateway go on. One that ends again and again is given up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from lightning_core.policies.store import PolicyStore, StoreError
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmError

log = logging.getLogger(__name__)

POLL_S = 0.5
MOST_RESTARTS = 3  # in `RESTARTS_WITHIN_S`
RESTARTS_WITHIN_S = 1800.0


class Supervisor:
    """Watches `vllm` between `__enter__` and `__exit__`. `restarts` counts; `gave_up` says why, where it did."""

    def __init__(self, vllm: VllmServer, on_giving_up: Callable[[], None] = lambda: None) -> None:
        self.restarts = 0
        self.gave_up: str | None = None
        self._vllm = vllm
        self._on_giving_up = on_giving_up
        self._begun: deque[float] = deque(maxlen=MOST_RESTARTS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vllm supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_S):
            if self._vllm.alive():
                continue
            try:
                self._look()
            except Exception as error:
                log.exception("the supervisor of vLLM ended")
                self.gave_up = str(error)
            if self.gave_up is not None:
                log.error("vLLM is not started again: %s", self.gave_up)
                self._on_giving_up()
                return

    def _look(self) -> None:
        with self._vllm.exclusive():  # a redeploy that finds it dead restarts it by itself
            if self._stopping.is_set() or self._vllm.alive() or not self._vllm.refresh():
                return
            now = time.monotonic()
            if len(self._begun) == MOST_RESTARTS and now - self._begun[0] < RESTARTS_WITHIN_S:
                self.gave_up = f"it ended {MOST_RESTARTS + 1} times within {RESTARTS_WITHIN_S / 60:.0f} minutes; see {self._vllm.state.log}"
                return
            self._begun.append(now)
            self._bring_back()

    def _bring_back(self) -> None:
        state = self._vllm.state
        log.warning("vLLM (pid %d) is gone; starting it again with %s", state.pid, state.version)
        began = time.monotonic()
        try:
            for folder in (state.weights, *state.adapters.values()):
                _verify(self._vllm.home, Path(folder))
            self._vllm.restart(Path(state.weights), state.version, on_progress=self._go_on)
        except StoreError as error:
            self.gave_up = str(error)
        except (VllmError, OSError) as error:  # OSError: a disk that is full just now
            if not self._stopping.is_set():
                log.warning("vLLM did not start: %s", error)  # the next look counts, and tries again
        else:
            self.restarts += 1
            log.warning("vLLM serves %s again after %.0f s", state.version, time.monotonic() - began)

    def _go_on(self, reached: str) -> None:
        """Raise VllmError while vLLM starts if the supervisor stops: who stops it need not wait until vLLM serves."""
        log.debug(reached)
        if self._stopping.is_set():
            raise VllmError("it is not needed any more")


def _verify(home: Path, folder: Path) -> None:
    """Raise StoreError where a version's files are not what was published; the base model's folder is no version."""
    policy, store = folder.parent, (home / "policies").resolve()
    if policy.parent == store:
        PolicyStore(home, policy.name).verify(folder.name)
