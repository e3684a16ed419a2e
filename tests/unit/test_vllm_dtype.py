"""What vLLM computes in where the settings leave it open: on a CPU, bf16 only where that is multiplied natively."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_core.config import VllmSettings
from lightning_core.policies import vllm_command


@pytest.mark.parametrize(
    ("lines", "native"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\nbugs\t\t: avx512_bf16\n", False),
        ("flags\t\t: fpu avx512_bf16x\n", False),
        ("Features\t: fp asimd\n", False),
        (None, False),
    ],
)
def test_a_cpu_multiplies_bf16_where_its_flags_say_so(lines: str | None, native: bool, tmp_path: Path) -> None:
    if lines is not None:
        (tmp_path / "cpuinfo").write_text(lines)
    assert vllm_command.multiplies_bf16(tmp_path / "cpuinfo") is native


@pytest.mark.parametrize(
    ("cpu", "native", "asked", "dtype"),
    [
        (True, True, "auto", "bfloat16"),
        (True, False, "auto", "float32"),
        (True, True, "float32", "float32"),
        (False, True, "auto", "auto"),
    ],
)
def test_auto_is_settled_on_a_cpu_and_left_to_vllm_on_a_gpu(
    cpu: bool, native: bool, asked: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_command, "cpu_build", lambda: cpu)
    monkeypatch.setattr(vllm_command, "multiplies_bf16", lambda: native)
    settings = VllmSettings.model_validate({"dtype": asked})
    arguments = vllm_command.command(settings, Path("m"), "p", Path("s"), None, 0)
    assert arguments[arguments.index("--dtype") + 1] == dtype
