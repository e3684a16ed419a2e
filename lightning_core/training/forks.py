"""A process that has a trainer's modules imported, from which trainings are forked: what takes seconds happens once.

    python -m lightning_core.training.forks <descriptor of its socket> <module of the trainer>

It has one socket and never trains. A packet asks for a training: its arguments, with the descriptors of a pipe for that
training and of its log. A process in between waits for the training and writes its pid, then its exit code, into the pipe; so
several can be under way. When the owner's end closes, the process ends; what it forked watches the owner itself
(`--with-parent`). It imports no torch where it is only asked.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import IO, NoReturn

_PACKET = 64 * 1024
_END_S = 5.0


class Forked:
    """A training that was forked; what `subprocess.Popen` has of the same name does the same."""

    def __init__(self, told: int, parent: subprocess.Popen[bytes]) -> None:
        self._told = told
        self._part = b""  # of a line
        self._parent = parent
        self._lock = threading.RLock()  # one thread follows it, another may end it
        self.pid: int | None = None  # once it has begun, which is after the imports; it leads a group of its own
        self.returncode: int | None = None

    def poll(self) -> int | None:
        while self.returncode is None and self._hear(0):
            pass
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises subprocess.TimeoutExpired after so many seconds of silence."""
        while self.returncode is None:
            if not self._hear(timeout):
                raise subprocess.TimeoutExpired("training", timeout or 0.0)
        return self.returncode

    def signal_group(self, number: int) -> None:
        """Signal it and its children; where it has not begun, it never will."""
        with self._lock:
            if self.poll() is not None:
                return
            if self.pid is None:
                self._end(-number)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)

    def _hear(self, timeout: float | None) -> bool:
        with self._lock:
            if self.returncode is not None:
                return True
            if not select.select([self._told], [], [], timeout)[0]:
                return False
            new = os.read(self._told, 64)
            if not new:
                self._end(self._untold())
            *lines, self._part = (self._part + new).split(b"\n")
            for line in lines:
                if self.pid is None:
                    self.pid = int(line)
                else:
                    self._end(int(line))
            return True

    def _untold(self) -> int:
        """The exit code where whoever would have told it has ended: its own, if that is what it was forked from."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._parent.wait(_END_S if self.pid is None else 0) or 1
        return 1

    def _end(self, code: int) -> None:
        self.returncode = code
        os.close(self._told)


class Preloaded:
    """The owner's side: starts the process, asks it for trainings, ends it. Not for several threads at one time."""

    def __init__(self, trainer: str, environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightning_core.training.forks", str(theirs.fileno()), trainer],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, arguments: list[str], log: IO[bytes]) -> Forked:
        """Begin a training, `python -m lightning_core.training` with these arguments; not before the imports are done."""
        told, tell = os.pipe()
        try:
            socket.send_fds(self._control, [json.dumps(arguments).encode()], [tell, log.fileno()])
        finally:
            os.close(tell)
        return Forked(told, self._process)

    def close(self) -> None:
        """End the process; what it forked goes on."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def serve(control: socket.socket) -> None:
    """Fork a training for each packet, until the owner has gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes in between
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, _PACKET, 2, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return
        if os.fork() == 0:
            control.close()
            _between(json.loads(packet), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _between(arguments: list[str], tell: int, log: int) -> NoReturn:
    """Fork the training, wait for it, tell the owner; does not return."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = os.fork()
        if pid == 0:
            os.close(tell)
            _train(arguments, log)
        with contextlib.suppress(ProcessLookupError):
            os.setpgid(
                pid, pid
            )  # the child does it too: whoever comes first, there is a group before its number is told
        try:
            os.write(tell, b"%d\n" % pid)
        except OSError:  # the owner wants it no more
            os.killpg(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.killpg(pid, signal.SIGKILL)  # what it left behind, while its number can be no other's
        _, status = os.waitpid(pid, 0)
        os.write(tell, b"%d\n" % os.waitstatus_to_exitcode(status))
    except BaseException:  # noqa: BLE001 - a forked process must not fall back into the loop
        traceback.print_exc()
    finally:
        os._exit(0)


def _train(arguments: list[str], log: int) -> NoReturn:
    """In the training's process; does not return."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        gc.enable()
        from lightning_core.training.__main__ import main

        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - as an interpreter would end
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    import lightning_core.training.__main__  # noqa: F401
    from lightning_core.training.job import import_trainer

    import_trainer(sys.argv[2])
    gc.collect()
    gc.freeze()  # what all trainings share stays shared
    gc.disable()
    serve(control)


if __name__ == "__main__":
    main()
