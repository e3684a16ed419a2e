"""What vLLM computes in where the settings leave it open: bf16 on a CPU that multiplies it, on a GPU as vLLM chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_core.config import VllmSettings
from lightning_core.policies import vllm, vllm_command
from lightning_core.policies.vllm import VllmServer


@pytest.mark.parametrize(
    ("cpu", "bf16", "asked", "dtype"),
    [
        (True, True, "auto", "bfloat16"),
        (True, False, "auto", "float32"),
        (True, True, "float32", "float32"),
        (True, False, "bfloat16", "bfloat16"),
        (False, False, "auto", "auto"),
    ],
)
def test_auto_is_settled_on_a_cpu_only(
    cpu: bool, bf16: bool, asked: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_command, "cpu_build", lambda: cpu)
    monkeypatch.setattr(vllm_command, "multiplies_bf16", lambda: bf16)
    settings = VllmSettings.model_validate({"dtype": asked})
    arguments = vllm_command.command(settings, Path("m"), "p", Path("s"), None, 0)
    assert arguments[arguments.index("--dtype") + 1] == dtype


@pytest.mark.parametrize(
    ("cpu", "bf16", "asked", "said"),
    [
        (True, False, "bfloat16", True),
        (True, True, "bfloat16", False),
        (True, False, "auto", False),
        (False, False, "bfloat16", False),
    ],
)
def test_bf16_on_a_cpu_without_it_is_said_to_be_slow(
    cpu: bool, bf16: bool, asked: str, said: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vllm_command, "cpu_build", lambda: cpu)
    monkeypatch.setattr(vllm_command, "multiplies_bf16", lambda: bf16)
    heard: list[str] = []
    monkeypatch.setattr(vllm, "command", lambda *_: ["/no/such/program", "--dtype", asked])
    settings = VllmSettings.model_validate({"dtype": asked})
    with pytest.raises(FileNotFoundError):
        VllmServer.start(settings, tmp_path / "none", "p", home=tmp_path, on_progress=heard.append)
    assert any("take `auto`" in line for line in heard) is said


def test_float32_on_a_gpu_is_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_command, "cpu_build", lambda: False)
    assert vllm_command.environment(None, None, "float32")["TRITON_F32_DEFAULT"] == "ieee"
    assert "TRITON_F32_DEFAULT" not in vllm_command.environment(None, None, "auto")


def test_the_head_is_float32_where_that_is_asked_for() -> None:
    for asked in (False, True):
        arguments = vllm_command.command(VllmSettings(head_in_float32=asked), Path("m"), "p", Path("s"), None, 0)
        assert ('{"head_dtype": "float32"}' in arguments) is asked


def test_no_settings_that_a_gpu_runs_too_name_float32() -> None:
    """`auto` is the same on a CPU, and on a GPU what vLLM and the trainer share."""
    root = Path(__file__).parents[2]
    files = [root / "prefect.yaml", *root.glob("examples/*/*.yaml"), *root.glob("bench/*.yaml")]
    assert len(files) > 10
    assert [str(file) for file in files if "float32" in file.read_text()] == []
