"""Runs attempts in forks of one fork server, from any thread, and starts it again where it was lost."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_core.agents.capture import Capture, Stream
from lightning_core.agents.environment import import_folder
from lightning_core.config import LimitSettings
from lightning_core.process.forks import ForkServer, ForkServerError

log = logging.getLogger(__name__)

_START_S = 180.0
_EOF_GRACE_S = 1.0
_MB = 1024 * 1024


@dataclass(frozen=True)
class Program:
    """What all attempts of a pool run: a callable's target or a command's argv, and where."""

    directory: Path
    environment: Mapping[str, str] = field(repr=False)
    limits: LimitSettings = field(default_factory=LimitSettings)
    target: str | None = None
    python: Path | None = None  # what runs the callable; default: what runs this
    argv: Sequence[str] = ()
    preload: Sequence[str] = ()
    preload_optional: bool = False
    grace_s: float = 2.0


class ServerLostError(ForkServerError):
    """The fork server was lost with an attempt under way, which may be the attempt's doing, or that of one beside it."""


@dataclass(frozen=True)
class Ended:
    """How the first process of an attempt ended (negative: the signal), and what it printed."""

    code: int
    timed_out: bool
    left: int  # processes that outlived it and were ended
    stdout: Capture
    stderr: Capture
    threads: int | None = None  # of all its processes, where it had too many and was ended


class Pool:
    """Runs attempts of one program. Thread-safe; a context manager."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._program = program
        self._log_file = folder / "fork-server.log"
        self._import_folder = import_folder(folder)
        self._lock = threading.Lock()
        self._server: ForkServer | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Make sure that a fork server is ready. Raises ForkServerError, also where a module of `agent.preload` cannot
        be imported."""
        self._ready()

    def run(self, kind: str, folder: Path, stdin: Path, environment: Mapping[str, str], timeout_s: float) -> Ended:
        """Run one attempt to its end, `timeout_s` at most. Raises ForkServerError, of which ServerLostError, where it was lost."""
        server, request = self._ready(), {"kind": kind, "folder": str(folder)}
        limits = self._program.limits
        with (
            stdin.open("rb") as task,
            Stream(limits.output_mb * _MB) as stdout,
            Stream(limits.output_mb * _MB) as stderr,
        ):
            streams = (task.fileno(), stdout.given, stderr.given)
            fork = server.fork(request, environment, streams, (stdout, stderr), limits.processes)
            for stream in (stdout, stderr):  # the server has its own copies
                stream.hand_over()
            timed_out = False
            try:
                code = fork.wait(timeout_s)
            except subprocess.TimeoutExpired:
                timed_out, code = True, fork.end(self._program.grace_s)
            # Everything of the attempt is gone; only what escaped altogether could still hold a pipe open.
            fork.drain(_EOF_GRACE_S)
        if fork.lost is not None:
            kind_of = ServerLostError if fork.lost_with_server and not self.closed else ForkServerError
            raise kind_of(f"the attempt was lost: {fork.lost}")
        return Ended(code, timed_out, fork.left, stdout, stderr, fork.threads)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def closes_within(self, seconds: float) -> bool:
        """Wait so long; return at once, and True, where it is closed."""
        return self._closed.wait(seconds)

    def close(self) -> None:
        """End all attempts and the fork server, also one that still imports; a second call changes nothing."""
        self._closed.set()
        # Without the lock, which is held until a server is ready. One that is not there yet is ended by who starts it.
        if (server := self._server) is not None:
            server.end()

    def _ready(self) -> ForkServer:
        with self._lock:
            if self.closed:
                raise ForkServerError("the runner was closed")
            if self._server is None or not self._server.alive:
                if self._server is not None:
                    log.warning("the fork server has gone and is started again; its log is %s", self._log_file)
                    self._server.end()
                return self._start()
            return self._server

    def _start(self) -> ForkServer:
        program = self._program
        init = {
            "directory": str(program.directory),
            "target": program.target,
            "argv": list(program.argv),
            "preload": list(program.preload),
            "preload_optional": program.preload_optional,
            "limits": _of_each_process(program.limits),
        }
        self._server = server = ForkServer(
            "lightning_core.agents.child",
            init,
            self._log_file,
            program.environment,
            python=program.python,
            directory=self._import_folder,
        )
        try:
            if self.closed:
                raise ForkServerError("the runner was closed")
            threads = server.wait_until_ready(_START_S)
        except BaseException:
            server.end()
            self._server = None
            raise
        if threads > 1:
            log.warning(
                "agent.preload: the modules started %d threads; forks do not have them, so preload fewer modules",
                threads - 1,
            )
        return server


def _of_each_process(limits: LimitSettings) -> dict[str, int]:
    """Return name in module `resource` → value. RLIMIT_NPROC is none of them: it counts all processes of the user."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "RLIMIT_DATA": machine // 2 if limits.memory_mb is None else limits.memory_mb * _MB,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_FSIZE": limits.file_mb * _MB,
    }
