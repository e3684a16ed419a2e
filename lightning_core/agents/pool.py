"""The owner's side of the zygote: start it, hand it attempts from any thread, learn how they ended, restart it.

One thread reads the zygote's messages. A zygote that dies or hangs takes the attempts in flight with it; they are
reported as lost (the infrastructure's failure), and the next attempt starts a new one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_core.agents import processes
from lightning_core.agents.capture import Capture, Pump
from lightning_core.agents.environment import import_folder
from lightning_core.agents.zygote import PACKET
from lightning_core.errors import LightningError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
_EOF_GRACE_S = 1.0
_HUNG_S = 15.0
_END_S = 5.0


class PoolError(LightningError):
    """The zygote cannot be started, or was lost with the attempts it had. Not the agent's doing."""


class PreloadError(PoolError):
    """A module of `agent.preload` cannot be imported."""


@dataclass(frozen=True)
class Program:
    """What all attempts of a pool run: a callable's target or a command's argv, and where."""

    directory: Path
    environment: Mapping[str, str] = field(repr=False)
    target: str | None = None
    python: Path | None = None  # what runs the callable; default: what runs this
    argv: Sequence[str] = ()
    preload: Sequence[str] = ()
    preload_optional: bool = False
    grace_s: float = 2.0


@dataclass(frozen=True)
class Ended:
    """How the first process of an attempt ended (negative: the signal), and what it printed."""

    code: int
    timed_out: bool
    left: int  # processes that outlived it and were ended
    stdout: Capture
    stderr: Capture


class _Pending:
    def __init__(self, attempt_id: str) -> None:
        self.attempt_id = attempt_id
        self.pid: int | None = None
        self.code = 0
        self.left = 0
        self.error: str | None = None
        self.done = threading.Event()


class Pool:
    """Runs attempts of one program. Thread-safe; a context manager."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._program = program
        self._log_file = folder / "zygote.log"
        self._import_folder = import_folder(folder)
        self._lock = threading.Lock()
        self._zygote: _ZygoteProcess | None = None
        self._pump = Pump()
        self._keys = itertools.count()
        self.closed = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Have a zygote that is ready. Raises PreloadError or PoolError."""
        self._ready()

    def run(
        self, kind: str, attempt_id: str, folder: Path, stdin: Path, environment: Mapping[str, str], timeout_s: float
    ) -> Ended:
        """Run one attempt to its end, `timeout_s` at most. Raises PoolError where the zygote was lost meanwhile."""
        zygote = self._ready()
        pending = _Pending(attempt_id)
        key = next(self._keys)
        message = {
            "op": "start",
            "key": key,
            "kind": kind,
            "attempt_id": attempt_id,
            "folder": str(folder),
            "environment": dict(environment),
        }
        with contextlib.ExitStack() as streams:  # the zygote has its own copies once they are sent
            stdin_fd = os.open(stdin, os.O_RDONLY | os.O_CLOEXEC)
            streams.callback(os.close, stdin_fd)
            stdout_fd, stdout = self._pump.open()
            streams.callback(os.close, stdout_fd)
            stderr_fd, stderr = self._pump.open()
            streams.callback(os.close, stderr_fd)
            zygote.send(key, pending, message, [stdin_fd, stdout_fd, stderr_fd])
        timed_out = not pending.done.wait(timeout_s)
        if timed_out:
            zygote.kill(key)
            if not pending.done.wait(self._program.grace_s + _HUNG_S):
                log.error("the zygote (pid %d) does not answer and is ended", zygote.pid)
                zygote.end()
                pending.done.wait()
        if pending.error is not None:
            raise PoolError(pending.error)
        for capture in (stdout, stderr):
            # Everything of the attempt is gone; only what escaped altogether could still hold a pipe open.
            capture.ended.wait(_EOF_GRACE_S)
        return Ended(pending.code, timed_out, pending.left, stdout, stderr)

    def close(self) -> None:
        """End all attempts and the zygote; a second call does nothing."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            if self._zygote is not None:
                self._zygote.end()
                self._zygote = None
        self._pump.close()

    def _ready(self) -> _ZygoteProcess:
        with self._lock:
            if self.closed:
                raise PoolError("the runner was closed")
            if self._zygote is None or not self._zygote.alive:
                if self._zygote is not None:
                    log.warning("the zygote has gone and is started again; its log is %s", self._log_file)
                    self._zygote.end()
                self._zygote = _ZygoteProcess(self._program, self._log_file, self._import_folder)
            return self._zygote


class _ZygoteProcess:
    """One zygote: its process, its socket, and the attempts it has."""

    def __init__(self, program: Program, log_file: Path, directory: Path) -> None:
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.alive = True
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [str(program.python or sys.executable), "-m", "lightning_core.agents.zygote", str(theirs.fileno())],
                cwd=directory,
                env=dict(program.environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # an interrupt at the terminal is for the flow, which then closes the pool
            )
        try:
            self._introduce(program, log_file)
        except BaseException:
            self.end()
            raise
        self._thread = threading.Thread(target=self._listen, name="zygote-messages", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _introduce(self, program: Program, log_file: Path) -> None:
        init = {
            "directory": str(program.directory),
            "target": program.target,
            "argv": list(program.argv),
            "preload": list(program.preload),
            "preload_optional": program.preload_optional,
            "grace_s": program.grace_s,
        }
        self._socket.settimeout(START_TIMEOUT_S)
        try:
            self._socket.send(json.dumps(init).encode())
            packet = self._socket.recv(PACKET)
        except OSError as error:
            packet, problem = b"", str(error)
        else:
            problem = "it ended"
        finally:
            self._socket.settimeout(None)
        if not packet:
            said = log_file.read_text("utf-8", "replace")[-2000:].strip()
            raise PoolError(f"the process attempts are forked from did not start ({problem}): {said}")
        answer = json.loads(packet)
        if answer["event"] == "failed":
            raise PreloadError(answer["error"])
        if answer["threads"] > 1:
            log.warning(
                "agent.preload: the modules started %d threads; forks do not have them, so preload fewer modules",
                answer["threads"] - 1,
            )

    def send(self, key: int, pending: _Pending, message: dict[str, Any], descriptors: list[int]) -> None:
        packet = json.dumps(message).encode()
        if len(packet) > PACKET:
            raise PoolError(f"an attempt's environment of {len(packet)} bytes is too large (at most {PACKET})")
        with self._lock:
            if not self.alive:
                raise PoolError("the process attempts are forked from has gone")
            self._pending[key] = pending
            try:
                socket.send_fds(self._socket, [packet], descriptors)
            except OSError as error:
                del self._pending[key]
                raise PoolError(f"the process attempts are forked from cannot be reached: {error}") from error

    def kill(self, key: int) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"op": "kill", "key": key}).encode())

    def end(self) -> None:
        """Close the socket, which makes the zygote end all it has; end it by force where it does not."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                packet = self._socket.recv(PACKET)
            except OSError:
                packet = b""
            if not packet:
                break
            message = json.loads(packet)
            with self._lock:
                pending = self._pending.get(message["key"])
                if message["event"] != "started":
                    self._pending.pop(message["key"], None)
            if pending is None:
                continue
            if message["event"] == "started":
                pending.pid = message["pid"]
                continue
            if message["event"] == "exited":
                pending.code, pending.left = message["code"], message["left"]
            else:
                pending.error = f"the attempt could not be started: {message['error']}"
            pending.done.set()
        self._lost()

    def _lost(self) -> None:
        with self._lock:
            self.alive = False
            lost, self._pending = list(self._pending.values()), {}
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        if lost:
            processes.end_all([(pending.pid, pending.attempt_id) for pending in lost if pending.pid])
        for pending in lost:
            pending.error = f"the process attempts are forked from has gone (exit code {self._process.returncode})"
            pending.done.set()
