"""The training process's environment."""

from __future__ import annotations

import subprocess
import sys
import sysconfig

import pytest

from lightning_core.training.launch import ALLOCATOR

glibc = pytest.mark.skipif("linux-gnu" not in sysconfig.get_config_var("HOST_GNU_TYPE"), reason="glibc's settings")

_FAULTS = """
import resource, torch
for _ in range(2):
    torch.ones(32 << 20)  # 128 MB; the first is there, the second has what the first gave back
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(32 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
def test_a_large_tensor_has_the_pages_of_the_one_before_it() -> None:
    def faults(environment: dict[str, str]) -> int:
        done = subprocess.run([sys.executable, "-c", _FAULTS], env=environment, capture_output=True, check=True)
        return int(done.stdout)

    assert faults(ALLOCATOR) < 100 < faults({})
