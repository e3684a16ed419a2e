"""Whose vLLM it is, and what becomes of one that a killed flow left. vLLM is only remembered here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_core.config import Settings
from lightning_core.epoch import services as module
from lightning_core.epoch.epoch import Run
from lightning_core.policies.model import ModelFolder
from lightning_core.policies.vllm_client import VllmError
from lightning_core.policies.vllm_command import command
from lightning_core.process.linux import created

DEAD = {"pid": 2**22 + 1, "started": 1.0}


class Vllm:
    """`says`: the version it names, None for one that was left paused. Of the class: the one that runs, and all started."""

    runs: Vllm | None = None
    started: list[Any]  # of Vllm, which a fleet has in place of VllmServer

    def __init__(self, settings: Settings, base: Path) -> None:
        self.socket = Path("/tmp/s")
        arguments = command(settings.vllm, base, "policy", self.socket, None, 1)
        self.state = SimpleNamespace(
            served_name="policy", version="v0001", weights=str(base), command=arguments, replica=0, device=None
        )
        self.says: str | None = "v0001"
        self.stopped = False

    @classmethod
    def find(cls, home: Path, replica: int) -> Vllm | None:
        return cls.runs

    @classmethod
    def known(cls, home: Path, replica: int) -> Vllm | None:
        return cls.runs

    @contextmanager
    def client(self, timeout_s: float = 0) -> Iterator[Vllm]:
        yield self

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def alive(self) -> bool:
        return not self.stopped

    def logprobs(self, model: str) -> list[float]:
        if self.says is None:
            raise VllmError("no answer in time")
        return [-1.0]

    def version(self) -> str | None:
        return self.says

    def stop(self) -> None:
        self.stopped = True
        Vllm.runs = None


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Under `lightning-flows up`: another living process owns the home's services."""
    found = Settings.model_validate(
        {"run": "r", "home": tmp_path, "agent": {"command": "true"}, "tasks": {"train": "x:y"}}
    )

    def start(run: Run, model: ModelFolder, replica: int, say: Any) -> Vllm:
        Vllm.runs = Vllm(run.settings, model.path)
        Vllm.started.append(Vllm.runs)
        return Vllm.runs

    Vllm.runs, Vllm.started = None, []
    monkeypatch.setattr(module, "VllmServer", Vllm)
    monkeypatch.setattr(module, "_start_vllm", start)
    monkeypatch.setattr(module, "base_model", lambda *_: ModelFolder(tmp_path, "folder"))
    monkeypatch.setattr(module, "gateway_running", lambda *_: nullcontext(SimpleNamespace()))
    monkeypatch.setattr(module, "_let_calls_fail", lambda _: None)
    monkeypatch.setattr(module, "Supervisor", lambda *_, **__: nullcontext())
    own(tmp_path, "owner", alive(os.getppid()))
    return found


def own(home: Path, name: str, who: dict[str, Any]) -> None:
    (home / "services").mkdir(exist_ok=True)
    (home / "services" / f"{name}.json").write_text(json.dumps(who))


def alive(pid: int) -> dict[str, Any]:
    return {"pid": pid, "started": created(pid)}


def left_behind(settings: Settings) -> Any:
    own(settings.home, "vllm-0-keeper", DEAD)
    Vllm.runs = Vllm(settings, settings.home)
    return Vllm.runs


def test_what_a_killed_flow_left_is_taken_over_and_stopped_in_the_end(settings: Settings) -> None:
    left = left_behind(settings)
    with module.running(Run(settings), lambda _: None) as services:
        assert services.fleet == [left] and not left.stopped
        with module.running(Run(settings), lambda _: None) as inner:
            assert inner.fleet == [left]
        assert not left.stopped
    assert left.stopped and Vllm.started == []


@pytest.mark.parametrize("says", [None, "v0002"])
def test_what_was_left_paused_or_with_weights_nobody_noted_is_started_anew(
    settings: Settings, says: str | None
) -> None:
    left = left_behind(settings)
    left.says = says
    logged: list[str] = []
    with module.running(Run(settings), logged.append) as services:
        assert left.stopped and services.fleet == Vllm.started
    assert "in the middle of something" in logged[0]


def test_what_was_left_with_other_settings_is_started_anew(settings: Settings) -> None:
    left = left_behind(settings)
    longer = settings.model_copy(update={"vllm": settings.vllm.model_copy(update={"max_model_len": 4096})})
    logged: list[str] = []
    with module.running(Run(longer), logged.append) as services:
        assert left.stopped and services.fleet == Vllm.started
    assert "with other settings" in logged[0]


def test_what_a_living_flow_looks_after_is_used_and_left_running(settings: Settings) -> None:
    left = left_behind(settings)
    own(settings.home, "vllm-0-keeper", alive(os.getppid()))
    with module.running(Run(settings), lambda _: None) as services:
        assert services.fleet == [left]
    assert not left.stopped and Vllm.started == []
