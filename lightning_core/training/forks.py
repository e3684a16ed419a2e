"""A process that has the trainers' modules imported, from which trainings are forked: what takes seconds happens once.

    python -m lightning_core.training.forks <descriptor of its socket>

It has one socket and never trains. A packet asks for a training: its arguments, with the descriptors of a pipe for that
training and of its log. A process in between waits for the training and writes its pid, then its exit code, into the pipe; so
several can be under way. When the owner's end of the socket closes, the process ends; when that of a pipe does, a training.
The owner imports no torch.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import pkgutil
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import IO, NoReturn

from lightning_core import training
from lightning_core.agents.processes import signal_group
from lightning_core.training.code import training_code
from lightning_core.training.job import import_trainer

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
                signal_group(self.pid, number)

    def _hear(self, timeout: float | None) -> bool:
        with self._lock:
            if self.returncode is not None:
                return True
            if not _wait(timeout, {self._told: select.POLLIN}):
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
        """The exit code where whoever would have told it has ended: where it never began, that of what it was to be forked from."""
        if self.pid is not None:
            signal_group(self.pid, signal.SIGKILL)
            return -signal.SIGKILL
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._parent.wait(_END_S) or 1
        return 1

    def _end(self, code: int) -> None:
        self.returncode = code
        os.close(self._told)


class Preloaded:
    """The owner's side: starts the process, asks it for trainings, ends it. Not for several threads at one time."""

    def __init__(self, environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightning_core.training.forks", str(theirs.fileno())],
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
        with contextlib.suppress(ConnectionError):  # it has just ended, which the closed pipe will tell
            socket.send_fds(self._control, [json.dumps(arguments).encode()], [tell, log.fileno()])
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
        try:
            pid = os.fork()
        except OSError as error:
            os.write(descriptors[1], f"the training cannot be forked: {error}\n".encode())
        else:
            if pid == 0:
                control.close()
                _between(json.loads(packet), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _between(arguments: list[str], tell: int, log: int) -> NoReturn:
    """Fork the training and tell its pid, wait until it ends or the owner wants it no more, tell how; does not return."""
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = os.fork()
        if pid == 0:
            os.close(tell)
            _train(arguments)
        with contextlib.suppress(ProcessLookupError):
            # The child does it too: whoever comes first, there is a group before its number is told.
            os.setpgid(pid, pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(tell, b"%d\n" % pid)
        _wait(None, {tell: 0, os.pidfd_open(pid): select.POLLIN})
        signal_group(pid, signal.SIGKILL)  # what it left behind, too, while its number can be no other's
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(tell, b"%d\n" % os.waitstatus_to_exitcode(status))
    except BaseException:  # noqa: BLE001 - a forked process must not fall back into the loop
        traceback.print_exc()
    finally:
        os._exit(0)


def _train(arguments: list[str]) -> NoReturn:
    """In the training's process; does not return."""
    code = 1
    try:
        os.setpgid(0, 0)
        gc.enable()
        from setproctitle import setproctitle

        from lightning_core.training.__main__ import main

        # In the list of processes it is as one that began afresh.
        setproctitle(shlex.join([sys.executable, "-m", "lightning_core.training", *arguments]))
        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - as an interpreter would end
        traceback.print_exc()
    finally:
        try:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _wait(timeout: float | None, events: Mapping[int, int]) -> bool:
    """Whether one of the events came to its descriptor, its other end's closing always being one, within `timeout` seconds."""
    poll = select.poll()
    for descriptor, event in events.items():
        poll.register(descriptor, event)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    # All of it, though a training needs it in parts: what is edited during a run must not be mixed with what was there before.
    for module in pkgutil.iter_modules(training.__path__, f"{training.__name__}."):
        import_trainer(module.name)
    training_code()
    gc.collect()
    gc.freeze()  # what all trainings share stays shared
    gc.disable()
    sys.stdout.flush()
    sys.stderr.flush()
    serve(control)


if __name__ == "__main__":
    main()
