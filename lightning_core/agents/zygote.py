"""The process that attempts are forked from: imports once, forks a fresh child for each attempt, watches and ends them.

    python -m lightning_core.agents.zygote <descriptor of its socket>

It has one thread and never runs an agent's code itself: of the agent's file it makes bytecode, once. Messages are JSON,
one a packet. It gets `init` (what to preload, what to run), `start` (with descriptors for stdin, stdout, stderr) and
`kill`, and answers `ready` or `failed`, then `started` and, once no process of the attempt is left, `exited`. When the
socket closes, its owner has gone: it ends everything below it and then itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from types import CodeType
from typing import Any

from lightning_core.agents import child, processes
from lightning_core.agents.agent_file import AgentFile

PACKET = 128 * 1024
_FOR_CONNECTIONS = "encodings.idna"  # the first connection to anywhere imports it: a tenth of a small attempt


@dataclass
class _Attempt:
    key: int
    attempt_id: str
    pid: int
    kill_at: float | None = None  # time.monotonic() when SIGTERM has had its chance


class Zygote:
    """The loop; `serve` returns when the owner has gone."""

    def __init__(self, control: socket.socket, init: dict[str, Any]) -> None:
        self.control = control
        self.directory: str = init["directory"]
        self.target: str = init.get("target") or ""
        file = self.target.rpartition(":")[0]
        self.file = AgentFile(file) if file.endswith(".py") else None
        self.argv: list[str] = init.get("argv") or []
        self.grace_s: float = init["grace_s"]
        self.attempts: dict[int, _Attempt] = {}  # by the leader's pid
        self.wakeup_r, self.wakeup_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakeup_w, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ)
            selector.register(self.wakeup_r, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(self._next_kill()):
                    if key.fileobj is self.control:
                        if not self._message():
                            return
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self.wakeup_r, 4096)
                self._kill_overdue()
                self._reap()

    def _message(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(self.control, PACKET, 3, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return False
        message = json.loads(packet)
        if message["op"] == "start":
            self._start(message, descriptors)
        elif message["op"] == "kill":
            for attempt in self.attempts.values():
                if attempt.key == message["key"] and attempt.kill_at is None:
                    processes.signal_group(attempt.pid, signal.SIGTERM)
                    attempt.kill_at = time.monotonic() + self.grace_s
        return True

    def _start(self, message: dict[str, Any], descriptors: list[int]) -> None:
        parent = os.getpid()
        code = self.file.code() if self.file is not None else None
        try:
            pid = os.fork()
        except OSError as error:
            self._send(event="refused", key=message["key"], error=f"fork: {error}")
            return
        if pid == 0:
            self._become(parent, message, code, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.attempts[pid] = _Attempt(message["key"], message["attempt_id"], pid)
        self._send(event="started", key=message["key"], pid=pid)

    def _become(self, parent: int, message: dict[str, Any], code: CodeType | None, descriptors: list[int]) -> None:
        """In the child; does not return."""
        try:
            stdin, stdout, stderr = descriptors
            child.become_attempt(
                parent, message["attempt_id"], message["environment"], self.directory, (stdin, stdout, stderr)
            )
            self.control.close()
            for descriptor in (*descriptors, self.wakeup_r, self.wakeup_w):
                os.close(descriptor)
            folder = message["folder"]
            if message["kind"] == "command":
                child.run_command(self.argv)
            child.run_callable(self.target, code, folder)
        except BaseException:  # noqa: BLE001 - a forked child must not fall back into the loop
            traceback.print_exc()
        finally:
            os._exit(126)

    def _next_kill(self) -> float | None:
        times = [attempt.kill_at for attempt in self.attempts.values() if attempt.kill_at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for attempt in self.attempts.values():
            if attempt.kill_at is not None and attempt.kill_at <= now:
                processes.signal_group(attempt.pid, signal.SIGKILL)
                attempt.kill_at = now + 1  # again, for a process that was being forked meanwhile

    def _reap(self) -> None:
        while True:
            try:
                # Left as a zombie for a moment, so that its pid still names its group and no other process.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            attempt = self.attempts.get(found.si_pid)
            if attempt is not None:
                processes.signal_group(attempt.pid, signal.SIGKILL)
            _, status = os.waitpid(found.si_pid, 0)
            if attempt is not None:
                del self.attempts[attempt.pid]
                left = processes.end_orphans(attempt.pid, attempt.attempt_id, self.attempts)
                self._send(event="exited", key=attempt.key, code=os.waitstatus_to_exitcode(status), left=left)

    def _send(self, **message: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.send(json.dumps(message).encode())


def preload(modules: list[str], optional: bool) -> str | None:
    """Import modules for all attempts to share: what went wrong, if anything.

    Optional ones (the settings' own defaults) may fail: an agent that needs one will say so itself.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001 - a module may do anything at import
            if not optional:
                return f"{module}: {type(error).__name__}: {error}"
            if not isinstance(error, ModuleNotFoundError):
                traceback.print_exc()  # into the zygote's log
    return None


def main() -> None:
    """Serve the socket whose descriptor is the first argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    init = json.loads(control.recv(PACKET))
    processes.become_subreaper()
    os.chdir(init["directory"])
    problem = preload([_FOR_CONNECTIONS, *init["preload"]], init["preload_optional"])
    if problem is not None:
        control.send(json.dumps({"event": "failed", "error": problem[:4000]}).encode())
        return
    gc.collect()
    gc.freeze()  # what all children share stays shared
    gc.disable()
    control.send(json.dumps({"event": "ready", "threads": len(os.listdir("/proc/self/task"))}).encode())
    try:
        Zygote(control, init).serve()
    finally:
        processes.end_children()


if __name__ == "__main__":
    main()
