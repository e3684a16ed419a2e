"""The vLLM process: start, find, watch and stop it.

vLLM listens on a Unix socket in a folder of its own (mode 0700), since its administrative routes ask for no key.
`home/services/vllm.json` names the running one, for other processes and later flows. It runs in a process group of its
own, which `stop` ends as a whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lightning_core.config import VllmSettings
from lightning_core.files import locked, write_atomic
from lightning_core.policies.vllm_client import VllmClient, VllmError
from lightning_core.policies.vllm_command import command, environment, slow_dtype
from lightning_core.policies.vllm_log import explain_exit, phase
from lightning_core.process.linux import end_group, is_running
from lightning_core.process.spawn import Process

log = logging.getLogger(__name__)

SOCKET_PATH_LIMIT = 107  # bytes in sockaddr_un, less the final zero
REPORT_EVERY_S = 3.0
START_TIMEOUT_S = 1800.0  # of one that neither ends nor answers: a large model is read and compiled for many minutes


@dataclass(frozen=True)
class VllmState:
    """What `services/vllm.json` holds. `started` is the process's creation time: a pid alone may be another's by now."""

    pid: int
    started: float
    socket: str
    model: str
    served_name: str
    version: str
    weights: str
    lora_rank: int | None
    log: str
    command: list[str]
    start_timeout_s: float
    lora_slots: int = 0
    replica: int = 0
    device: str | None = None  # CUDA_VISIBLE_DEVICES; None: that of the flow
    adapters: dict[str, str] = field(default_factory=dict)  # name → folder; a restart loads them again


class VllmServer:
    """A running vLLM. Made by `start` or `find`."""

    def __init__(self, state: VllmState, home: Path, process: Process | None = None) -> None:
        self.state = state
        self.home = home
        self.asleep = False  # since this process sent it to sleep, and until a swap or `sleep.wake`
        self._process = process

    @classmethod
    def start(
        cls,
        settings: VllmSettings,
        model_dir: Path,
        served_name: str,
        *,
        home: Path,
        lora_rank: int | None = None,
        lora_slots: int = 4,
        version: str = "v0000",
        replica: int = 0,
        on_progress: Callable[[str], None] = log.info,
    ) -> VllmServer:
        """Serve the weights in `model_dir` as `served_name` and return when vLLM answers.

        `replica` numbers those of one home. With `lora_rank` adapters up to that rank can be loaded, `lora_slots` of
        them at once. Raises VllmError with the cause where vLLM ends early or takes longer than START_TIMEOUT_S;
        nothing is left running then.
        """
        socket = _socket_path()
        state = VllmState(
            pid=0,
            started=0,
            socket=str(socket),
            model=str(model_dir),
            served_name=served_name,
            version=version,
            weights=str(model_dir),
            lora_rank=lora_rank,
            log=str(home.resolve() / "logs" / f"{_name(replica)}.log"),
            replica=replica,
            device=settings.device(replica),
            command=command(settings, model_dir, served_name, _doorstep(socket), lora_rank, lora_slots),
            start_timeout_s=START_TIMEOUT_S,
            lora_slots=lora_slots if lora_rank is not None else 0,
        )
        server = cls(state, home)
        slow = slow_dtype(settings)
        if slow is not None:
            on_progress(slow)
        try:
            with locked(server._lock_file):  # who finds it meanwhile, and wants it, waits until it is ready
                before = cls.known(home, replica)
                if before is not None and before.alive():
                    raise VllmError(
                        f"a vLLM runs already for {home} (pid {before.state.pid}, {before.state.model}); stop it, or use it"
                    )
                if before is not None:
                    before._clear_away()
                server._launch(on_progress)
        except BaseException:
            server.stop()
            raise
        return server

    def restart(self, weights: Path, version: str, on_progress: Callable[[str], None] = log.info) -> None:
        """End it and start it anew on the same socket with `weights` and the adapters it had: the last resort.

        Calls in flight are lost; those that come before it is ready find no socket. Raises VllmError as `start` does.
        """
        self._end()
        self.asleep = False
        arguments = list(self.state.command)
        arguments[arguments.index("--model") + 1] = str(weights)
        self.socket.unlink(missing_ok=True)
        self.state = replace(self.state, command=arguments, weights=str(weights), version=version)
        try:
            self._launch(on_progress)
        except BaseException:
            self._end()
            raise

    @classmethod
    def find(cls, home: Path, replica: int = 0) -> VllmServer | None:
        """Return the vLLM that `services/vllm.json` names, if that very process still runs."""
        server = cls.known(home, replica)
        return server if server is not None and server.alive() else None

    @classmethod
    def known(cls, home: Path, replica: int = 0) -> VllmServer | None:
        """Return the vLLM that was started and not stopped, be it running or gone."""
        state = _read_state(home, replica)
        return None if state is None else cls(state, home)

    @classmethod
    def all_known(cls, home: Path) -> list[VllmServer]:
        """Return those of all replicas of a home that were started and not stopped, be they running or gone."""
        names = [re.fullmatch(r"vllm(?:-(\d+))?\.json", file.name) for file in (home / "services").glob("vllm*.json")]
        numbers = sorted(int(name[1] or 0) for name in names if name is not None)
        return [vllm for number in numbers if (vllm := cls.known(home, number)) is not None]

    def refresh(self) -> bool:
        """Take over what other handles did to it: swaps, adapters, a restart. False if it was stopped for good."""
        state = _read_state(self.home, self.state.replica)
        if state is None or state.socket != self.state.socket:
            return False
        if state.pid != self.state.pid:
            self._process = None
        self.state = state
        return True

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock it against other deploys and its supervisor, in this process and in others. Not to be nested."""
        with locked(self._lock_file):
            self.refresh()
            yield

    @property
    def _state_file(self) -> Path:
        return _state_file(self.home, self.state.replica)

    @property
    def _lock_file(self) -> Path:
        return self._state_file.with_suffix(".lock")

    @property
    def socket(self) -> Path:
        return Path(self.state.socket)

    @property
    def upstream(self) -> str:
        """Return the address for the gateway: `unix://` and the path of the socket."""
        return f"unix://{self.state.socket}"

    def client(self, timeout_s: float = 120) -> VllmClient:
        """Return a client of its administrative routes; close it, or use it in a `with`."""
        return VllmClient(self.socket, timeout_s)

    def alive(self) -> bool:
        """Return whether the server process (this one, not another under its pid) still runs."""
        if self._process is not None and self._process.poll() is not None:
            return False
        return is_running(self.state.pid, self.state.started)

    def check(self) -> None:
        """Raise VllmError unless the process runs and its engine answers."""
        if not self.alive():
            raise VllmError(f"vLLM (pid {self.state.pid}) is gone; see {self.state.log}, then start it again")
        with self.client() as client:
            client.request("GET", "/health", timeout_s=30)

    def serves(self, weights: Path, version: str) -> None:
        """Record what is being served now, for those who find this vLLM later."""
        self._note(replace(self.state, weights=str(weights), version=version))

    def holds(self, adapters: dict[str, str]) -> None:
        """Record which adapters are loaded (name → folder)."""
        self._note(replace(self.state, adapters=adapters))

    @property
    def dtype(self) -> str:
        """Return what its weights are computed in, as it was started: `float32`, `bfloat16`, `float16` or `auto`."""
        return self.state.command[self.state.command.index("--dtype") + 1]

    def stop(self, timeout_s: float = 15) -> None:
        """End all its processes: SIGTERM, and SIGKILL after `timeout_s`. Harmless when it is gone already."""
        with locked(self._lock_file):  # or a supervisor would see it gone, and start it again
            now = VllmServer.find(self.home, self.state.replica)
            if now is not None and now.state.socket == self.state.socket and now.state.pid != self.state.pid:
                now._end(timeout_s)  # restarted by another handle since
            self._clear_away(timeout_s)
            state = _read_state(self.home, self.state.replica)
            if state is not None and state.socket == self.state.socket:
                self._state_file.unlink()

    def _launch(self, on_progress: Callable[[str], None]) -> None:
        log_file = Path(self.state.log)
        _doorstep(self.socket).unlink(missing_ok=True)
        if log_file.exists():
            log_file.replace(log_file.with_suffix(".log.1"))
        self._process = Process(
            self.state.command, log_file, environment(self.state.lora_rank, self.state.device, self.dtype)
        )
        self.state = replace(self.state, pid=self._process.pid, started=self._process.started)
        self._note(self.state)
        self._wait_until_ready(self.state.start_timeout_s, on_progress)
        with VllmClient(_doorstep(self.socket)) as client:
            client.set_version(self.state.version)
            for name, folder in self.state.adapters.items():
                client.load_lora(name, Path(folder))
        # Only now can calls reach it: before, an adapter would have been unknown to it.
        os.rename(_doorstep(self.socket), self.socket)

    def _clear_away(self, timeout_s: float = 15) -> None:
        """End what is left of it (an engine can outlive its server), and remove its socket."""
        self._end(timeout_s)
        shutil.rmtree(self.socket.parent, ignore_errors=True)

    def _end(self, timeout_s: float = 15) -> None:
        if not self.state.pid:
            return  # it was never launched
        end_group(self.state.pid, self.state.started, timeout_s)
        if self._process is not None:
            self._process.wait()

    def _wait_until_ready(self, timeout_s: float, on_progress: Callable[[str], None]) -> None:
        began = time.monotonic()
        reported: tuple[str, float] = ("", 0.0)
        log_file = Path(self.state.log)
        while True:
            seconds = time.monotonic() - began
            if not self.alive():
                code = self._process.wait() if self._process is not None else None
                raise VllmError(explain_exit(log_file.read_text(errors="replace"), code, log_file))
            with VllmClient(_doorstep(self.socket)) as client:
                ready = client.healthy()  # it may wait for the answer through all phases that are left
            reached = phase(log_file.read_text(errors="replace"))
            if reached != reported[0] or seconds - reported[1] >= REPORT_EVERY_S:
                on_progress(f"vLLM: {reached} ({seconds:.0f} s)")
                reported = (reached, seconds)
            if ready:
                on_progress(f"vLLM: ready after {time.monotonic() - began:.0f} s")
                return
            if seconds > timeout_s:
                raise VllmError(f"vLLM was not ready after {timeout_s:.0f} s (it was {reached}): {log_file} says why")
            time.sleep(0.25)

    def _note(self, state: VllmState) -> None:
        """Write `state` to the file, then take it for true: other handles, and a later flow, go by the file."""
        write_atomic(self._state_file, json.dumps(asdict(state)).encode(), mode=0o600)
        self.state = state


def _socket_path() -> Path:
    """Return a path for the socket in a new folder with mode 0700, short enough for a Unix socket."""
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(base)) + len("/lf-vllm-12345678/new") <= SOCKET_PATH_LIMIT and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="lf-vllm-", dir=base)) / "s"
    raise VllmError(
        f"no folder for vLLM's socket: {tempfile.gettempdir()} is too long a path and /tmp not writable; set TMPDIR"
    )


def _doorstep(socket: Path) -> Path:
    """Return the path where vLLM listens until it is ready."""
    return socket.with_name("new")


def _read_state(home: Path, replica: int) -> VllmState | None:
    try:
        return VllmState(**json.loads(_state_file(home, replica).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _name(replica: int) -> str:
    return "vllm" if replica == 0 else f"vllm-{replica}"


def _state_file(home: Path, replica: int) -> Path:
    return home / "services" / f"{_name(replica)}.json"
