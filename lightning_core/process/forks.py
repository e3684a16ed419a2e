"""The owner's side of a fork server: start it, have it fork from any thread, learn how forks ended."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning_core.errors import LightningError
from lightning_core.process import linux
from lightning_core.process.fork_server import PACKET, send
from lightning_core.process.spawn import Process

log = logging.getLogger(__name__)

HUNG_S = 15.0  # until a server is ended that does not answer
END_S = 5.0


class ForkServerError(LightningError):
    """The server cannot be started, or was lost with the forks it had. Not the doing of what was forked."""


class Reader(Protocol):
    """What is read while a fork runs: `read` takes what is there, and is False at the end of it."""

    def fileno(self) -> int: ...
    def read(self) -> bool: ...


class Fork:
    """A forked process. `pid`, `returncode`, `poll` and `wait` are as those of subprocess.Popen, from any thread."""

    def __init__(self, server: ForkServer, keeper: socket.socket, readers: Iterable[Reader]) -> None:
        self.pid: int | None = None  # once it has begun; it leads a session of its own
        self.returncode: int | None = None
        self.left = 0  # processes that outlived it and were ended
        self.threads: int | None = None  # it had of all processes, where that was too many and it was ended
        self.lost: str | None = None  # why nobody knows how it would have ended
        self.lost_with_server = False  # after it had begun
        self._keeper_pid: int | None = None
        self._server, self._keeper, self._lock = server, keeper, threading.Lock()
        self._readers = list(readers)  # that have not come to their end
        keeper.setblocking(False)

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal, once no process of it is left; None before."""
        with self._lock:
            while self.returncode is None and self._hear():
                pass
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait, then return what `poll` does. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            with contextlib.suppress(ValueError):  # another thread has just heard that it ended
                self._read(left_s, self._keeper)
        return code

    def drain(self, timeout_s: float) -> None:
        """Read what it wrote to the end, or for `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self._readers and (left_s := deadline - time.monotonic()) > 0:
            self._read(left_s)

    def _read(self, timeout_s: float | None, *others: socket.socket) -> None:
        ready = select.poll()
        for descriptor in [one.fileno() for one in self._readers] + [other.fileno() for other in others]:
            ready.register(descriptor, select.POLLIN)
        found = {descriptor for descriptor, _ in ready.poll(None if timeout_s is None else 1000 * timeout_s)}
        self._readers = [one for one in self._readers if one.fileno() not in found or one.read()]

    def end(self, grace_s: float) -> int:
        """Send SIGTERM to its group, and SIGKILL to all of it after `grace_s`; return its exit code.

        One whose server is not ready yet never begins.
        """
        if self.poll() is None and (self.pid is not None or self._server.ready):
            if self.pid is not None:
                linux.signal_group(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.wait(grace_s)
            with self._lock, contextlib.suppress(OSError):
                if self.returncode is None:  # else its keeper may run another by now
                    self._keeper.shutdown(socket.SHUT_WR)
            self._wake()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.wait(HUNG_S)
            log.error("the fork server (pid %d) does not answer and is ended", self._server.pid)
            self._server.end()
            self._wake()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.wait(END_S)
            self.lost, self.lost_with_server = "the fork server did not answer", self.pid is not None
        with self._lock:
            if self.returncode is None:
                self._ended(-signal.SIGTERM)
        return self.wait()

    def _wake(self) -> None:
        """Send SIGCONT to the server and the keeper: the fork, or anyone, could have stopped them."""
        self._server.wake()
        if self._keeper_pid is not None:
            linux.kill([self._keeper_pid], signal.SIGCONT)

    def _hear(self) -> bool:
        """Handle a message of its keeper, or the end of the keeper's socket; return whether there was either."""
        try:
            packet = self._keeper.recv(PACKET)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self.lost = f"the fork server has gone (exit code {self._server.exit_code()})"
            self.lost_with_server = self.pid is not None
            if self.pid is not None:
                linux.signal_group(self.pid, signal.SIGKILL)
            self._ended(1 if self.pid is None else -signal.SIGKILL)
            return True
        message = json.loads(packet)
        self.pid, self._keeper_pid = message.get("pid", self.pid), message.get("keeper", self._keeper_pid)
        if "lost" in message:
            self.lost = message["lost"]
            self._ended(1)
        elif "last" in message:
            self.lost = "its keeper was ended before it had begun" if self.pid is None else None
            self.left = message["left"]
            self._ended(message["code"])
        elif "code" in message:
            self.returncode, self.left, self.threads = message["code"], message["left"], message["threads"]
            self._server.keep(self._keeper)
        return True

    def _ended(self, code: int) -> None:
        """Record an exit code that its keeper did not report, and close the keeper's socket."""
        self.returncode = code
        with contextlib.suppress(OSError):
            self._keeper.shutdown(socket.SHUT_RDWR)  # also for who waits for it just now
        self._keeper.close()


class ForkServer:
    """A process that `module.prepare(init)` has imported things in, and that forks children which have them."""

    def __init__(
        self,
        module: str,
        init: Mapping[str, Any],
        log_file: Path,
        environment: Mapping[str, str],
        *,
        python: Path | None = None,
        directory: Path | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._answer: dict[str, Any] | None = None
        self._keepers: deque[socket.socket] = deque()  # that have no fork just now
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [str(python or sys.executable), "-m", "lightning_core.process.fork_server"]
            self._process = Process(
                [*command, str(theirs.fileno()), module],
                log_file,
                environment,
                directory=directory,
                descriptors=[theirs.fileno()],
            )
        send(self._control, **init)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Return whether its imports are done."""
        return self._answered(0) and "threads" in (self._answer or {})

    def wait_until_ready(self, timeout_s: float) -> int:
        """Return how many threads it has, of which a fork gets one. Raises ForkServerError with what it printed."""
        answered = self._answered(timeout_s)
        answer = self._answer or {}
        if "refused" in answer:
            raise ForkServerError(answer["refused"])
        if "threads" not in answer:
            problem = "it ended" if answered else f"no answer in {timeout_s:.0f} s"
            printed = "\n".join(self._process.log_end())
            raise ForkServerError(f"the fork server did not start ({problem}): {printed}")
        return int(answer["threads"])

    def fork(
        self,
        request: Mapping[str, Any],
        environment: Mapping[str, str],
        streams: tuple[int, int, int],
        readers: Iterable[Reader] = (),
        most_threads: int | None = None,
    ) -> Fork:
        """Fork a process, once the server is ready; `environment` is set beside the server's own. Returns at once.

        `streams`: its stdin, stdout, stderr; `readers` of them read while it is waited for. `most_threads`: with more,
        of all its processes, it is ended. Raises ForkServerError where the environment is too large.
        """
        message = {"request": request, "environment": dict(environment), "most_threads": most_threads}
        packet = json.dumps(message).encode()
        if len(packet) > PACKET:
            raise ForkServerError(f"the environment of a fork is too large ({len(packet)} bytes, at most {PACKET})")
        while (keeper := self._unused()) is not None:
            with contextlib.suppress(OSError):  # it was killed meanwhile
                socket.send_fds(keeper, [packet], streams)
                return Fork(self, keeper, readers)
            keeper.close()
        self.wake()
        keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.suppress(OSError):  # of a server that has gone the fork learns by its closed socket
            socket.send_fds(keeper, [packet], streams)
            socket.send_fds(self._control, [b"keeper"], [theirs.fileno()])
        return Fork(self, keeper, readers)

    def _unused(self) -> socket.socket | None:
        with contextlib.suppress(IndexError):
            while True:
                keeper = self._keepers.popleft()
                ready = select.poll()
                ready.register(keeper, select.POLLIN)
                if not ready.poll(0):
                    return keeper
                keeper.close()  # it was killed, which its server has reported
        return None

    def keep(self, keeper: socket.socket) -> None:
        """Have this keeper run a later fork."""
        self._keepers.append(keeper)

    def wake(self) -> None:
        """Have it go on where someone has stopped it."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Close the socket, which makes the server end all it has; end it by force where it does not.

        Returns its exit code.
        """
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self.wake()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        code = self._process.end(0)
        for unused in (self._control, *self._keepers):
            unused.close()
        return code

    def exit_code(self) -> int | None:
        """Return the exit code of a server whose sockets have closed; None where it has not ended after END_S."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(END_S)
        return None

    def _answered(self, timeout_s: float) -> bool:
        with self._lock:
            if self._answer is None:
                ready = select.poll()
                ready.register(self._control, select.POLLIN)
                if not ready.poll(1000 * timeout_s):
                    return False
                with contextlib.suppress(OSError):
                    self._answer = json.loads(self._control.recv(PACKET) or b"{}")
            return True
