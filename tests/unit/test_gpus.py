"""What nvidia-smi says of the cards, and what is checked of it before a run. No card is at hand: the tables are written as an
H100's machine prints them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_core import gpus
from lightning_core.checks import cards as checks
from lightning_core.config import Settings
from lightning_core.gpus import Card, parse, seen
from tests.tiny_model import make_tiny_llama

ONE = "0, GPU-5f1c2b3a-0000-1111-2222-333344445555, NVIDIA H100 80GB HBM3, 81559, 81078, 580.159.04\n"
TWO = ONE + "1, GPU-99aa0000-0000-1111-2222-333344445555, NVIDIA H100 80GB HBM3, 81559, 4100, 580.159.04\n"
UNIFIED = "0, GPU-1, NVIDIA GB10, [N/A], [N/A], 580.95.05\n"  # its memory is the machine's


def test_cards_are_read_with_their_memory_in_bytes() -> None:
    assert parse(ONE) == [
        Card(
            index="0",
            uuid="GPU-5f1c2b3a-0000-1111-2222-333344445555",
            name="NVIDIA H100 80GB HBM3",
            total=81559 << 20,
            free=81078 << 20,
            driver="580.159.04",
        )
    ]
    assert (
        parse(UNIFIED) == [] == parse("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    )


@pytest.mark.parametrize(
    ("devices", "several", "visible", "expected"),
    [
        (None, False, None, ["0"]),
        (None, True, None, ["0", "1"]),
        (None, False, "1,0", ["1"]),
        (None, False, "", []),
        ("1", False, "0", ["1"]),
        ("0,1", True, None, ["0", "1"]),
        ("GPU-99aa", False, None, ["1"]),
    ],
)
def test_a_training_sees_the_cards_that_it_will_be_given(
    devices: str | None, several: bool, visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [card.index for card in seen(parse(TWO), devices, several)] == expected


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.CalledProcessError(9, "nvidia-smi")])
def test_a_machine_without_a_driver_has_none(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(gpus.subprocess, "run", run)
    assert gpus.cards() == []


def found(settings: str, table: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """Name of each check → its level and what it found."""
    always = {"run": "r", "home": str(home), "agent": {"command": "true"}, "tasks": {"train": "x:y"}}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(checks, "cards", lambda: parse(table))
    given = Settings.model_validate(always | yaml.safe_load(settings))
    return {each.name: (each.level, each.found) for each in checks.check_cards(given, trains=True)}


def test_a_machine_that_will_do_passes_and_one_without_cards_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_llama(tmp_path / "model")
    said = found(f"{{policies: [{{model: {tmp_path}/model}}]}}", ONE, tmp_path, monkeypatch)
    assert {name: level for name, (level, _) in said.items() if name != "compiler"} == {
        "driver": "ok",
        "GPU memory": "ok",
    }
    assert "with 4096 tokens in a pass; 85.0 GB are free on NVIDIA H100" in said["GPU memory"][1]
    assert found("{}", "", tmp_path, monkeypatch) == {}


@pytest.mark.parametrize(
    ("settings", "table", "name", "level", "words"),
    [
        ("{}", ONE.replace("580.159.04", "570.86.15"), "driver", "error", "570.86.15 .* install 580 or newer"),
        ("{policies: [{model: M}]}", ONE.replace("81559, 81078", "1100, 1050"), "GPU memory", "error", "has 1.2 GB; train an"),
        ("{policies: [{model: M}]}", ONE.replace("81078", "900"), "GPU memory", "warning", "are free on .* end what else"),
        ("{}", TWO, "idle cards", "warning", "1 of 2 cards would be used; .*`vllm.replicas: 1`.*`training.processes`"),
    ],
)  # fmt: skip
def test_what_a_card_lacks_is_said_before_the_first_rollout_with_the_remedy(
    settings: str, table: str, name: str, level: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_llama(tmp_path / "model")
    said = found(settings.replace("M", f"{tmp_path}/model"), table, tmp_path, monkeypatch)
    assert said[name][0] == level
    assert re.search(words, said[name][1])


@pytest.mark.parametrize(
    "settings",
    [
        "{training_devices: ['1']}",
        "{vllm: {replicas: 2, devices: ['0', '1']}}",
        "{policies: [{training: {processes: 2}}]}",
        "{vllm: {extra_args: [--tensor-parallel-size, '2']}}",
    ],
)
def test_cards_that_the_settings_use_are_not_called_idle(
    settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "idle cards" not in found(settings, TWO, tmp_path, monkeypatch)


def test_without_pythons_headers_triton_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    level, words = found("{}", ONE, tmp_path, monkeypatch)["compiler"]
    assert level == "error" and re.search(r"Python\.h is missing.*install python3\.\d+-dev", words)
