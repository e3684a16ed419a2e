"""Start a process with a log, wait until it is ready, end it with all it started."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lightning_core.errors import LightningError
from lightning_core.process.linux import created, end_group, end_with_parent

T = TypeVar("T")

# For those that compute on CPUs. Threads that wait for others spin for microseconds only, then sleep; by default they spin for
# so long that, where others want the cores too, vLLM's throughput falls to a sixth (15 instead of 87 tokens/s, two cores at
# load 7), and a training takes 80 s instead of 56 (one busy process beside it). Alone they take the same.
SHORT_SPINS = {"GOMP_SPINCOUNT": "5000"}


class StartError(LightningError):
    """A process ended, or did not become ready in time; the message has the end of its log."""


class Process(subprocess.Popen[bytes]):
    """A process that leads a session of its own, reads nothing, and whose output is appended to `log`.

    An interrupt at the terminal is not for it, but for its owner, which then ends it. `dies_with_us`: it is killed when the
    thread that started it ends. `started` is its creation time (linux.created).
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        directory: Path | None = None,
        descriptors: Sequence[int] = (),
        dies_with_us: bool = False,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        owner = os.getpid()
        with log.open("ab") as output:
            self.log, self._log_begin = log, output.tell()
            super().__init__(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                start_new_session=True,
                preexec_fn=(lambda: end_with_parent(owner)) if dies_with_us else None,
            )
        self.started = created(self.pid)

    def end(self, grace_s: float) -> int:
        """Send SIGTERM, and SIGKILL to all that is left of its session after `grace_s`.

        Returns its exit code, negative for a signal.
        """
        end_group(self.pid, self.started, grace_s)
        return self.wait()

    def wait_until(self, ready: Callable[[], T | None], timeout_s: float, name: str) -> T:
        """Return what `ready` returns once that is not None.

        Raises StartError where the process ends, or `timeout_s` has passed.
        """
        deadline = time.monotonic() + timeout_s
        while (found := ready()) is None:
            code, late = self.poll(), time.monotonic() > deadline
            if code is not None or late:
                how = f"was not ready within {timeout_s:.0f} s" if code is None else f"ended with code {code}"
                text = "\n".join(self.log_end())
                raise StartError(f"{name} {how}:\n{text}\n(its log: {self.log})")
            time.sleep(0.05)
        return found

    def log_end(self, lines: int = 20) -> list[str]:
        """Return the last lines that it wrote."""
        with self.log.open("rb") as file:
            file.seek(self._log_begin)
            return file.read().decode(errors="replace").splitlines()[-lines:]


def child_environment() -> dict[str, str]:
    """Return this process's environment, with the package importable from wherever it was started."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
