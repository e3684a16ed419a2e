"""A fork server: a process that imports once what its forks need, and forks a fresh child for each request.

    python -m lightning_core.process.fork_server <descriptor of its socket> <module>

`<module>.prepare(init)` imports what forks share, and returns a function that is called before each fork with its request;
what that returns is called in the child, and ends it. The server has one thread and runs no fork's code itself.

Between it and the forks are *keepers*, forked too, each of which runs one fork at a time. A keeper is a subreaper: a process
whose parent ends becomes its child, wherever it was below it. So when the fork ends, or the server or the owner has gone, the
keeper ends all that is left below it. Where a keeper is killed, its fork dies with it, and what is left becomes the server's
child, which ends it at once.

Messages are JSON, one a packet. The server gets `init` and answers `{"threads": …}` or `{"refused": …}`; then each packet has
the descriptor of a socket, for one more keeper. That gets on it one fork after another, with descriptors for stdin, stdout and
stderr, and answers `{"pid": …, "keeper": …}` and, once no process of the fork is left, `{"code": …, "left": …, "threads": …}` (the last
where there were too many). An owner that shuts its end down has the fork ended at once, and the keeper. Where a keeper is killed, which its fork can do, the server
answers in its place, once no process is left: `{"code": …, "left": …, "last": true}`, as of a fork that was killed itself. So
a socket that closes without an answer means that the server has gone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from lightning_core.process import linux

PACKET = 128 * 1024
_LOOK_MS = 250  # from one look at how many threads there are to the next

Prepared = Callable[[dict[str, Any]], Callable[[], object]]


class RefusedError(Exception):
    """Raised by `prepare` for what the user can mend; the owner gets the message."""


def main() -> None:
    """Serve the socket whose descriptor is the first argument, for forks of the module that is the second."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    try:
        prepared: Prepared = importlib.import_module(sys.argv[2]).prepare(json.loads(control.recv(PACKET)))
    except RefusedError as error:
        send(control, refused=str(error)[:4000])
        return
    gc.collect()
    gc.freeze()  # what all forks share stays shared
    gc.disable()
    sys.stdout.flush()
    sys.stderr.flush()
    send(control, threads=len(os.listdir("/proc/self/task")))
    linux.become_subreaper()
    try:
        _serve(control, prepared)
    finally:
        linux.end_children()


class _Keeper(NamedTuple):
    pid: int
    pidfd: int
    # The server's copy, so that the owner hears from it how a keeper ended that could not say so itself.
    owner: socket.socket

    def close(self) -> None:
        os.close(self.pidfd)
        self.owner.close()


def _serve(control: socket.socket, prepared: Prepared) -> None:
    """Fork keepers, and end what a keeper that ended has left; return when the owner has gone."""
    server = os.getpid()
    keepers: dict[int, _Keeper] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in keepers:
                poll.unregister(descriptor)
                _bury(keepers.pop(descriptor), {keeper.pid for keeper in keepers.values()})
                continue
            packet, descriptors, _, _ = socket.recv_fds(control, PACKET, 1, socket.MSG_CMSG_CLOEXEC)
            if not packet:
                return
            owner = socket.socket(fileno=descriptors[0])
            try:
                pid = os.fork()
            except OSError as error:
                send(owner, lost=f"fork: {error}")
                owner.close()
                continue
            if pid == 0:
                control.close()
                for other in keepers.values():  # which could be spoken for with these
                    other.close()
                _keep(server, owner, prepared)
            keeper = _Keeper(pid, os.pidfd_open(pid), owner)
            keepers[keeper.pidfd] = keeper
            poll.register(keeper.pidfd, select.POLLIN)


def _bury(keeper: _Keeper, others: set[int]) -> None:
    """End what a keeper has left, which is below the server now, and report it to the owner."""
    _, status = os.waitpid(keeper.pid, 0)
    left = linux.end_children(others)
    if os.WIFSIGNALED(status):
        send(keeper.owner, code=-os.WTERMSIG(status), left=left, last=True)
    else:
        send(keeper.owner, lost="its keeper failed; the fork server's log says why")
    keeper.close()


def _keep(server: int, owner: socket.socket, prepared: Prepared) -> NoReturn:
    """Run one fork after another, in the keeper, until the server or the owner has gone."""
    try:
        os.setsid()
        linux.become_subreaper()
        gone = os.pidfd_open(server)
        while _wait(owner.fileno(), gone):
            packet, streams, _, _ = socket.recv_fds(owner, PACKET, 3, socket.MSG_CMSG_CLOEXEC)
            if not packet or _wait(owner.fileno(), gone, timeout_ms=0):  # not wanted any more
                break
            message = json.loads(packet)
            run = prepared(message["request"])
            keeper = os.getpid()
            try:
                pid = os.fork()
            except OSError as error:
                send(owner, lost=f"fork: {error}")
                break
            if pid == 0:
                owner.close()
                os.close(gone)
                _become(keeper, streams, message["environment"], run)
            for stream in streams:
                os.close(stream)
            send(owner, pid=pid, keeper=keeper)
            ended = os.pidfd_open(pid)
            threads = _watch(pid, message["most_threads"], owner.fileno(), gone, ended)
            os.close(ended)
            linux.signal_group(pid, signal.SIGKILL)  # while its pid can be no other's
            _, status = os.waitpid(pid, 0)
            left = linux.end_children()
            if _wait(gone, timeout_ms=0):
                break  # whoever hears nothing does not take this for the end that the fork would have had
            send(owner, code=os.waitstatus_to_exitcode(status), left=left, threads=threads)
    except BaseException:  # noqa: BLE001 - a forked process must not fall back into the loop
        traceback.print_exc()
        linux.end_children()
    finally:
        os._exit(0)


def _watch(pid: int, most_threads: int | None, *descriptors: int) -> int | None:
    """Wait for one of the descriptors, or until too many threads are below this process; return their number then."""
    while not _wait(*descriptors, timeout_ms=None if most_threads is None else _LOOK_MS):
        linux.reap_orphans(but=pid)
        threads = linux.threads_below()
        # Orphans of a fork that ends meanwhile are reaped with it, not counted against it.
        if threads > (most_threads or 0) and not _wait(*descriptors, timeout_ms=0):
            return threads
    return None


def _become(keeper: int, streams: list[int], environment: dict[str, str], run: Callable[[], object]) -> NoReturn:
    """Run the fork, in the child, with a session, streams and an environment of its own; it dies with the keeper."""
    try:
        linux.end_with_parent(keeper)
        os.setsid()
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        for variable, value in environment.items():  # `update` looks at it for longer than this takes
            os.environ[variable] = value
        gc.enable()
        run()
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc()
    finally:
        os._exit(126)


def _wait(*descriptors: int, timeout_ms: int | None = None) -> bool:
    """Wait until one of the descriptors can be read, or its other end was closed; return False after `timeout_ms`."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def send(to: socket.socket, **message: Any) -> None:
    """Send a message; that the other side has gone is learned from the closed socket."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        to.send(json.dumps(message).encode())


if __name__ == "__main__":
    # By its name, as `<module>` imports it: there is one RefusedError then.
    importlib.import_module("lightning_core.process.fork_server").main()
