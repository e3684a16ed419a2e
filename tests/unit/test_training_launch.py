"""The training process's environment."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from lightning_core.training import launch
from lightning_core.training.job import Job
from lightning_core.training.launch import _environment
from lightning_core.training.new_version import peak_flops

glibc = pytest.mark.skipif("linux-gnu" not in sysconfig.get_config_var("HOST_GNU_TYPE"), reason="glibc's settings")

_FAULTS = """
import resource, torch
for _ in range(2):
    torch.ones(32 << 20)  # 128 MB; the first is there, the second has what the first gave back
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(32 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow  # two processes import torch
@glibc
def test_a_large_tensor_has_the_pages_of_the_one_before_it() -> None:
    def faults(environment: dict[str, str]) -> int:
        done = subprocess.run([sys.executable, "-c", _FAULTS], env=environment, capture_output=True, check=True)
        return int(done.stdout)

    assert faults(environment()) < 100 < faults({})


def environment(training: dict[str, Any] | None = None, **fields: Any) -> dict[str, str]:
    nowhere = Path("nowhere")
    paths = dict.fromkeys(("base_model", "sequences", "output", "state", "progress"), nowhere)
    settings = {"training": training or {}}
    job = Job.model_validate({"run": "r", "epoch": 0, "policy": "p", "policy_settings": settings, **paths, **fields})
    return _environment(job)


def test_one_process_sees_one_gpu_and_several_see_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """In sight of several, transformers would split micro-batches over them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment()["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in environment({"processes": 2})
    assert "CUDA_VISIBLE_DEVICES" not in environment({"accelerate_config": "two.yaml"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert environment()["CUDA_VISIBLE_DEVICES"] == "2"
    assert environment({"processes": 2})["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert environment(device="5")["CUDA_VISIBLE_DEVICES"] == "5"


def test_threads_that_wait_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert environment()["GOMP_SPINCOUNT"] == "5000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment()["GOMP_SPINCOUNT"] == "7"


def test_processes_of_this_machine_alone_meet_on_its_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert environment({"processes": 2})["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in environment({"processes": 2, "accelerate_config": "two-machines.yaml"})


def test_a_devices_peak_is_its_own_and_not_of_one_whose_name_begins_alike() -> None:
    names = ("NVIDIA L4", "NVIDIA L40", "NVIDIA L40S", "NVIDIA A10", "NVIDIA A100-SXM4-80GB", "NVIDIA T4")
    assert [peak_flops(name) for name in names] == [121e12, 181e12, 362e12, 125e12, 312e12, None]


def test_on_a_gpu_a_trainers_memory_grows_in_place_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No GPU is at hand: that there is one is what is made believe."""
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert "PYTORCH_CUDA_ALLOC_CONF" not in environment()
    monkeypatch.setattr(launch, "_has_gpu", lambda: True)
    assert environment()["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:512")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in environment()
