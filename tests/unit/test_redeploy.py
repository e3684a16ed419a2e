"""A swap that fails at any one step: the former weights, version, routes and record are there again, and calls go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lightning_core.policies.redeploy import RedeployFailed, hot_swap
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmError
from tests.policy_files import write_model

STEPS = [
    "logprobs",
    "pause",
    "reload",
    "compare",
    "reset",
    "set_version",
    "version",
    "routes",
    "resume",
    "again",
    "note",
]


class Vllm:
    """What vLLM has loaded and says; `fails[step]` is raised there, once."""

    def __init__(self, weights: Path) -> None:
        self.state = SimpleNamespace(weights=str(weights), version="v0001", served_name="policy", adapters={})
        self.dtype = "float32"
        self.holds, self.cached, self.named, self.paused = weights, weights, "v0001", False
        self.routed = "v0001"
        self.fails: dict[str, BaseException] = {}
        self.restarts = 0
        self.asleep = False
        self.read: list[Path] = []

    def step(self, name: str) -> None:
        if (error := self.fails.pop(name, None)) is not None:
            raise error

    @contextmanager
    def client(self) -> Iterator[Vllm]:
        yield self

    def alive(self) -> bool:
        return True

    def logprobs(self, model: str, tokens: list[int]) -> list[float]:
        assert not self.paused
        self.step("logprobs" if self.holds == Path(self.state.weights) else "again")
        return [-float(self.holds.name[-1])] * (len(tokens) - 1)

    def pause(self, mode: str, timeout_s: float | None = None) -> None:
        self.step("pause")
        self.paused = True

    def reload_weights(self, folder: Path) -> None:
        assert self.paused
        self.step("reload")
        self.read.append(folder)
        self.holds = folder

    def wake_up(self, what: str) -> None:
        assert self.paused and self.asleep
        self.step(f"wake {what}")
        if what == "kv_cache":
            assert self.cached == self.holds and self.named == self.routed
            self.paused = False

    def compare(self, folder: Path) -> int:
        self.step("compare")
        assert self.holds == folder
        return 1

    def reset_prefix_cache(self) -> None:
        self.step("reset")
        self.cached = self.holds

    def set_version(self, version: str) -> None:
        self.step("set_version")
        self.named = version

    def version(self) -> str:
        self.step("version")
        return self.named

    def resume(self) -> None:
        self.step("resume")
        assert self.cached == self.holds and self.named == self.routed
        self.paused = False

    def restart(self, weights: Path, version: str) -> None:
        self.restarts += 1
        self.holds = self.cached = weights
        self.named, self.paused, self.asleep = version, False, False

    def serves(self, weights: Path, version: str) -> None:
        self.step("note")
        self.state.weights, self.state.version = str(weights), version

    def route(self, version: str) -> None:
        self.step("routes")
        self.routed = version


@pytest.fixture
def vllm(tmp_path: Path) -> Vllm:
    write_model(tmp_path / "v2", 2.0)
    return Vllm(write_model(tmp_path / "v1", 1.0))


def swap(vllm: Vllm, folder: Path) -> Any:
    return hot_swap(cast(VllmServer, vllm), folder, "v0002", before_resume=vllm.route)


def serves(vllm: Vllm, weights: Path, version: str) -> None:
    assert not vllm.paused
    assert (vllm.holds, vllm.cached, vllm.named, vllm.routed) == (weights, weights, version, version)
    assert (vllm.state.weights, vllm.state.version) == (str(weights), version)


def test_a_swap_changes_all_of_it(vllm: Vllm, tmp_path: Path) -> None:
    assert swap(vllm, tmp_path / "v2").changed
    serves(vllm, tmp_path / "v2", "v0002")
    assert vllm.restarts == 0


def test_one_that_sleeps_wakes_up_straight_into_the_new_version(vllm: Vllm, tmp_path: Path) -> None:
    vllm.asleep = vllm.paused = True
    done = swap(vllm, tmp_path / "v2")
    serves(vllm, tmp_path / "v2", "v0002")
    assert vllm.read == [tmp_path / "v2"] and not vllm.asleep
    assert {"wake", "reload", "resume"} <= done.seconds.keys()


@pytest.mark.parametrize("step", ["wake weights", *STEPS[2:8], "wake kv_cache", "again", "note"])
def test_one_that_fails_to_wake_into_the_new_version_serves_the_former(vllm: Vllm, tmp_path: Path, step: str) -> None:
    vllm.asleep = vllm.paused = True
    vllm.fails[step] = OSError("no space left") if step in ("note", "routes") else VllmError("no")
    with pytest.raises(RedeployFailed) as failed:
        swap(vllm, tmp_path / "v2")
    assert failed.value.restored and not vllm.asleep
    serves(vllm, tmp_path / "v1", "v0001")


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_the_former_version(vllm: Vllm, tmp_path: Path, step: str) -> None:
    vllm.fails[step] = OSError("no space left") if step in ("note", "routes") else VllmError("no")
    with pytest.raises(RedeployFailed) as failed:
        swap(vllm, tmp_path / "v2")
    assert failed.value.restored
    serves(vllm, tmp_path / "v1", "v0001")
    assert vllm.restarts == (step == "reload"), "a reload that began and failed cannot be reloaded over"


@pytest.mark.parametrize("step", STEPS[1:])
def test_an_interrupt_at_any_step_leaves_the_former_version_and_is_passed_on(
    vllm: Vllm, tmp_path: Path, step: str
) -> None:
    vllm.fails[step] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        swap(vllm, tmp_path / "v2")
    serves(vllm, tmp_path / "v1", "v0001")
