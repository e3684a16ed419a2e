"""Compare what this machine has with what a run needs: disk, memory, GPUs. Rough figures, from files, without torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from lightning_core.checks.result import Check
from lightning_core.config import ClusterSettings, Settings, SettingsError
from lightning_core.config.cluster import loopback
from lightning_core.policies.model import ModelError, check_model_folder, is_hub_id
from lightning_core.policies.sharing import check_gpus, serving
from lightning_core.policies.space import estimate, existing, free, gb, model_folder
from lightning_core.policies.tensor_files import parameters
from lightning_core.policies.vllm_client import VllmError
from lightning_core.policies.vllm_command import command, cpu_build

_GB = 1e9
_LITTLE_DISK = 2 * _GB  # a version of the smallest model, its moments and a lake
# Of processes on the CPU, beside weights and KV cache: vLLM, a training, and the flow with its servers.
_VLLM, _TRAINING, _FLOW = 2.2 * _GB, 1.5 * _GB, 1.2 * _GB
# Bytes a parameter, in float32: what vLLM serves; weights, gradients and the two moments of AdamW; the weights alone.
_SERVED, _TRAINED, _FROZEN = 4, 16, 4


def check_disk(settings: Settings, trains: bool) -> Check:
    """Compare the free space at `home` with what a run of these settings takes."""
    home = settings.home
    place = existing(home)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check("error", "disk", f"home: you cannot write to {place}; choose another folder")
    there = free(home)
    found, needed = f"{gb(there)} free for {home}", float(_LITTLE_DISK)
    if trains and (run := estimate(settings)) is not None:
        found, needed = f"a run takes {run}; {found}", run.at_most
    if there < needed:
        return Check("warning", "disk", f"{found}, which is little; free some space, or choose another `home`")
    return Check("ok", "disk", found)


def check_model(name: str, models: Path | None) -> Check:
    """Find the initial weights of the policies. The run downloads what is not on this machine yet."""
    if not is_hub_id(name) and not Path(name).expanduser().is_dir():
        return Check("error", "model", f"policies.0.model: {name}: no such folder, and no hub id (owner/name) either")
    folder = model_folder(name, models)
    if folder is None:
        return Check("ok", "model", f"{name}, not on this machine yet: the run downloads it first")
    try:
        check_model_folder(folder)
    except ModelError as error:
        return Check("error", "model", str(error))
    return Check("ok", "model", f"{name}, {parameters(folder) / 1e6:,.0f} million parameters, in {folder}")


def check_memory(settings: Settings, serves: bool, trains: bool) -> Check:
    """Compare weights, KV cache and training with the memory of the machine, or of this process's container."""
    available, total = _memory()
    free = f"{available / _GB:.1f} of {total / _GB:.1f} GB are free"
    if not on_cpu():
        return Check("ok", "memory", free)
    folder = model_folder(settings.policies[0].model, settings.models)
    size = 0 if folder is None else parameters(folder)
    bare = overhead = 0.0
    if serves:
        bare += settings.vllm.replicas * (_SERVED * size + settings.vllm.kv_cache_gb * 2**30)
        overhead += settings.vllm.replicas * _VLLM
    if trains:
        side_by_side = max(1, len(settings.training_devices))
        bare += side_by_side * max(
            (_TRAINED if policy.lora is None else _FROZEN) * size for policy in settings.policies
        )
        overhead += side_by_side * _TRAINING * max(policy.training.processes for policy in settings.policies)
    needed = f"a run takes about {(bare + overhead + _FLOW) / _GB:.1f} GB{'' if folder else ' and its model'}"
    remedy = "lower `vllm.kv_cache_gb` or `vllm.replicas`, train an adapter (`lora:`), or use a smaller model"
    if bare > total:
        return Check("error", "memory", f"{needed}, and this machine has {total / _GB:.1f} GB; {remedy}")
    if bare + overhead + _FLOW > available:
        return Check("warning", "memory", f"{needed}, and {free}; {remedy}")
    return Check("ok", "memory", f"{needed}; {free}")


def check_serving(settings: Settings) -> Check:
    """Check that vLLM is installed and accepts these settings, and that the GPUs that they name exist."""
    first = settings.policies[0]
    ranks = [policy.lora.rank for policy in settings.policies if policy.lora is not None]
    try:
        check_gpus(settings)
        command(serving(settings), Path(first.model), first.name, Path("socket"), max(ranks, default=None), 1)
        if cpu_build():
            return Check("ok", "vllm", "computes on the CPU")
        return _check_devices([*settings.vllm.devices, *settings.training_devices])
    except (SettingsError, VllmError) as error:
        return Check("error", "vllm", str(error))


def check_cluster(cluster: ClusterSettings, api: str | None) -> Check:
    """Check that the engine is installed, and that its workers can reach Prefect's server (`api`)."""
    if cluster.engine != "threads" and importlib.util.find_spec(f"prefect_{cluster.engine}") is None:
        found = (
            f"cluster.engine: prefect-{cluster.engine} is not installed; `pip install 'lightning-flows[scale]'`, here and on "
            "the workers"
        )
        return Check("error", "cluster", found)
    if cluster.elsewhere and (api is None or loopback(api)):
        found = (
            f"cluster.address: workers on other machines report to a Prefect server, and cannot reach {api}; start one "
            "with `prefect server start --host …` and set PREFECT_API_URL to it, here and on the workers"
        )
        return Check("error", "cluster", found)
    return Check("ok", "cluster", f"{cluster.engine}{f' at {cluster.address}' if cluster.address else ''}")


def _check_devices(given: list[str]) -> Check:
    here = [file.name for file in Path("/dev").glob("nvidia[0-9]*")]
    named = [device for each in given for device in each.split(",")]
    missing = [device for device in named if device.isdigit() and int(device) >= len(here)]
    if not here:
        return Check("warning", "vllm", "is the build for CUDA, but this machine shows no GPU (/dev/nvidia0 …)")
    if missing:
        found = f"`vllm.devices` or `training_devices` name GPU {missing[0]}, but this machine has {len(here)}, counted from 0"
        return Check("error", "vllm", found)
    return Check("ok", "vllm", f"computes on {len(here)} GPU{'s' if len(here) > 1 else ''}")


def on_cpu() -> bool:
    """Return whether vLLM computes on the CPU here."""
    try:
        return cpu_build()
    except VllmError:  # none is installed, which fine-tuning needs not
        return False


def _memory() -> tuple[float, float]:
    """Return available and total bytes: the machine's, or what the control group of this process allows."""
    machine = psutil.virtual_memory()
    limits = [(float(machine.available), float(machine.total)), *_groups()]
    return min(limit[0] for limit in limits), min(limit[1] for limit in limits)


def _groups() -> Iterator[tuple[float, float]]:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        files = next(int(value) for key, value in pairs if key == "inactive_file")  # given back where memory is short
    except (OSError, ValueError, StopIteration):  # no such group, or no limit ("max")
        return
    yield max(0.0, limit - used + files), float(limit)
