"""What the supervisor of vLLM does when it is gone, with a vLLM that is only remembered. The real one: tests/integration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lightning_core.policies import supervisor as module
from lightning_core.policies.store import Lineage
from lightning_core.policies.supervisor import MOST_RESTARTS, Supervisor
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmError
from tests.policy_files import store_with_base, write_model


class Remembered:
    """`lives`: how many restarts it lives through."""

    def __init__(self, home: Path, weights: Path, lives: int = 100) -> None:
        self.home, self.lives = home, lives
        self.state = SimpleNamespace(pid=1, version=weights.name, weights=str(weights), adapters={}, log="vllm.log")
        self.running, self.known = True, True
        self.restarted: list[tuple[Path, str]] = []

    def alive(self) -> bool:
        return self.running

    def refresh(self) -> bool:
        return self.known

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def restart(self, weights: Path, version: str, on_progress: Any = None) -> None:
        self.restarted.append((weights, version))
        if len(self.restarted) > self.lives:
            raise VllmError("out of memory")
        self.running = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    store = store_with_base(tmp_path)
    store.publish(write_model(tmp_path / "out", 1.0), Lineage(run="r", epoch=0, base_model="base", parent="v0000"))
    return store.path("v0001")


def watching(vllm: Remembered, given_up: Callable[[], None] = lambda: None) -> Supervisor:
    return Supervisor(cast(VllmServer, vllm), given_up)


def wait_until(true: Callable[[], object]) -> None:
    for _ in range(20_000):
        if true():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it did not come to pass")


def test_what_is_gone_is_started_with_the_version_it_served(tmp_path: Path, version: Path) -> None:
    vllm = Remembered(tmp_path, version)
    with watching(vllm) as supervisor:
        vllm.running = False
        wait_until(lambda: supervisor.restarts)
    assert vllm.restarted == [(version, "v0001")] and vllm.running


def test_what_ends_again_and_again_is_given_up(tmp_path: Path, version: Path) -> None:
    vllm, given_up = Remembered(tmp_path, version, lives=1), threading.Event()
    with watching(vllm, given_up.set) as supervisor:
        vllm.running = False
        wait_until(lambda: supervisor.restarts)
        vllm.running = False
        wait_until(lambda: supervisor.gave_up)
    assert len(vllm.restarted) == MOST_RESTARTS and given_up.is_set()
    assert "ended 4 times within 30 minutes; see vllm.log" in str(supervisor.gave_up)


def test_a_version_that_was_damaged_meanwhile_is_not_served(tmp_path: Path, version: Path) -> None:
    vllm = Remembered(tmp_path, version)
    with (version / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with watching(vllm) as supervisor:
        vllm.running = False
        wait_until(lambda: supervisor.gave_up)
    assert vllm.restarted == [] and "model.safetensors" in str(supervisor.gave_up)


def test_what_was_stopped_on_purpose_stays_so(tmp_path: Path, version: Path) -> None:
    vllm = Remembered(tmp_path, version)
    with watching(vllm):
        vllm.known = vllm.running = False
        threading.Event().wait(0.05)
    assert vllm.restarted == []


def test_who_stops_while_it_is_starting_does_not_wait_for_it(
    tmp_path: Path, version: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Remembered):
        def restart(self, weights: Path, version: str, on_progress: Any = None) -> None:
            self.restarted.append((weights, version))
            for _ in range(10_000):
                on_progress("vLLM: importing")
                threading.Event().wait(0.001)
            self.running = True

    vllm = Slow(tmp_path, version)
    with watching(vllm) as supervisor:
        vllm.running = False
        wait_until(lambda: vllm.restarted)
    assert not vllm.running and supervisor.restarts == 0 and supervisor.gave_up is None
    assert "did not start" not in caplog.text


def test_a_disk_that_is_full_for_a_while_is_no_reason_to_give_up(tmp_path: Path, version: Path) -> None:
    class Full(Remembered):
        def restart(self, weights: Path, version: str, on_progress: Any = None) -> None:
            if not self.restarted:
                self.restarted.append((weights, version))
                raise OSError("No space left on device")
            super().restart(weights, version)

    vllm = Full(tmp_path, version)
    with watching(vllm) as supervisor:
        vllm.running = False
        wait_until(lambda: supervisor.restarts or supervisor.gave_up)
    assert vllm.running and supervisor.gave_up is None
