"""One epoch that is ended by force at chosen moments, and started again each time: what test_kills.py looks at."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psutil

from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.training import train_version
from lightning_core.lake.manifest import EpochManifest, Manifests
from lightning_core.policies.store import PolicyStore
from lightning_core.settings_file import load_settings
from tests.gateway_rig import wait_for

ROOT = Path(__file__).parents[2]
WAIT_S = 300.0
MULTIPLE = "SELECT rollout_id FROM read_parquet(?) WHERE op = 'rollout' AND outcome <> 'infrastructure' GROUP BY ALL HAVING count(*) > 1"


@dataclass
class Epoch:
    """The epoch of a settings file, run by the command line in processes of its own."""

    settings_file: Path
    home: Path
    environment: dict[str, str]
    program: str = "lightning_flows.flows.cli"
    flow: tuple[str, ...] = ("train-epoch", "--epoch", "0")
    folder: Path = ROOT  # that it is started in
    starts: int = 0
    attempts_seen: int = 0  # that had ended when it was started last, or looked at since
    trainers: list[int] = field(default_factory=list)  # found since then

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        self.starts += 1
        self.attempts_seen = self.attempts()
        self.trainers = []
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self.program, self.flow[0], str(self.settings_file), *self.flow[1:]],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )
        yield process

    @property
    def log(self) -> Path:
        return self.settings_file.with_suffix(f".{self.starts}.log")

    def end_at(self, moment: Callable[[Epoch], bool], victim: Callable[[Epoch, int], list[int]]) -> int:
        """Start, wait for the moment, kill the victim; the flow's exit code. The flow may have failed by itself then."""
        with self.started() as process:
            deadline = time.monotonic() + WAIT_S
            while not moment(self):
                assert process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.02)
            _kill(victim(self, process.pid))
            return process.wait(WAIT_S)

    def finish(self) -> None:
        with self.started() as process:
            assert process.wait(WAIT_S) == 0, self.log.read_text()[-3000:]

    @property
    def manifest(self) -> EpochManifest | None:
        return self.manifest_of(0)

    def manifest_of(self, epoch: int) -> EpochManifest | None:
        return Manifests(self.home / "lake").epoch("tiny", epoch)

    def attempts(self) -> int:
        return len(list((self.home / "logs" / "attempts").glob("*")))

    def rollouts_that_ran_twice(self) -> list[Any]:
        files = [str(self.home / "lake" / f.path) for f in Manifests(self.home / "lake").spans().files]
        return duckdb.execute(MULTIPLE, [files]).fetchall()


# Moments. Each holds only while its stage is under way.
def rolling_out(epoch: Epoch) -> bool:
    """Another attempt has ended since the last look, and more are to come."""
    before, epoch.attempts_seen = epoch.attempts_seen, epoch.attempts()
    return epoch.attempts_seen > before


def after(stage: str) -> Callable[[Epoch], bool]:
    """The stage is done, so the next one is under way."""
    return lambda epoch: epoch.manifest is not None and stage in epoch.manifest.stages


def trainer_is_there(epoch: Epoch) -> bool:
    return bool(_processes(epoch.home, "lightning_core.training"))


def a_step_is_done(epoch: Epoch) -> bool:
    """Its trainer is looked for as soon as it says anything: looking takes longer than what is left after a step."""
    file = epoch.home / "training/tiny/policy/progress-0000.jsonl"
    if not file.exists():
        return False
    epoch.trainers = epoch.trainers or trainer(epoch, 0)
    return bool(epoch.trainers) and '"step"' in file.read_text()


def weights_are_written(epoch: Epoch) -> bool:
    done = (epoch.home / "training/tiny/policy/output-0000").is_dir()
    return done or (epoch.home / "policies/policy/v0001").is_dir()


def served_and_not_kept(epoch: Epoch) -> bool:
    """v0001 answers rollouts of the next epoch, and nothing says yet that it was trained."""
    manifest = epoch.manifest
    rollouts = 0 if manifest is None else len(manifest.planned)
    is_noted = manifest is not None and "train policy" in manifest.stages
    return not is_noted and PolicyStore(epoch.home, "policy").current() == "v0001" and epoch.attempts() > rollouts


def mlflow_has_the_run(epoch: Epoch) -> bool:
    return (epoch.home / "training/tiny/mlflow_run_id").is_file()


def vllm_is_starting(epoch: Epoch) -> bool:
    return bool(_processes(epoch.home, "vllm_main"))


# Victims.
def flow(epoch: Epoch, pid: int) -> list[int]:
    return [pid]


def tree(epoch: Epoch, pid: int) -> list[int]:
    """Everything: as when the machine goes down."""
    roots = [psutil.Process(pid), *_processes(epoch.home, "")]
    found: list[int] = [pid]
    for process in roots:
        with contextlib.suppress(psutil.Error):
            found += [process.pid, *(child.pid for child in process.children(recursive=True))]
    return list(dict.fromkeys(found))


def server(epoch: Epoch, pid: int) -> list[int]:
    return [json.loads((epoch.home / "services/gateway.json").read_text())["pid"]]


def vllm_then_flow(epoch: Epoch, pid: int) -> list[int]:
    """vLLM, which the flow starts again, and the flow once rollouts go on with the new one."""
    before = _pid_of_vllm(epoch)
    _kill([before, *(child.pid for child in psutil.Process(before).children(recursive=True))])
    wait_for(lambda: _pid_of_vllm(epoch) != before, WAIT_S)
    epoch.attempts_seen = epoch.attempts()
    wait_for(lambda: rolling_out(epoch), WAIT_S)
    return [pid]


def _pid_of_vllm(epoch: Epoch) -> int:
    return int(json.loads((epoch.home / "services/vllm.json").read_text())["pid"])


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def trainer(epoch: Epoch, pid: int) -> list[int]:
    return epoch.trainers or [process.pid for process in _processes(epoch.home, "lightning_core.training")]


def _processes(home: Path, name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        mine = any(str(home) in part for part in command)
        if mine and process.pid != os.getpid() and any(name in part for part in command):
            found.append(process)
    return found


def mentioning(home: Path) -> list[psutil.Process]:
    return _processes(home, "")


def undisturbed(epoch: Epoch, folder: Path) -> str:
    """Digest of the weights that the same rollouts come to where nothing interrupts; everything in a copy."""
    settings = load_settings(epoch.settings_file, {"home": str(folder)})
    for part in ("lake/spans", "policies/policy/v0000"):
        shutil.copytree(epoch.home / part, folder / part)
    (folder / "lake/manifests").mkdir()
    shutil.copy(epoch.home / "lake/manifests/spans.json", folder / "lake/manifests/spans.json")
    manifest = epoch.manifest
    assert manifest is not None
    manifest.tables.clear()
    copied = Run(settings).at(manifest)
    derive(copied, "undisturbed")
    policy = settings.policies[0]
    made = train_version(copied, policy, Path(policy.model), lambda _: None)
    return weights(PolicyStore(folder, "policy"), made.output["version"])


def weights(store: PolicyStore, version: str) -> str:
    return store.manifest(version).files["model.safetensors"].blake3


def triplets(epoch: Epoch) -> tuple[int, int]:
    """Triplets in the sequences, and how many different ones."""
    assert epoch.manifest is not None
    table = str(epoch.home / "lake" / epoch.manifest.tables["sequences"].path)
    [found] = duckdb.execute(
        "SELECT count(*), count(DISTINCT id) FROM (SELECT unnest(call_ids) AS id FROM read_parquet(?))",
        [table],
    ).fetchall()
    return found
