"""vLLM asleep while the trainer works: which requests, in which order, with a client that only notes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from lightning_core.config import Settings, SettingsError, VllmSettings
from lightning_core.epoch import services
from lightning_core.epoch.epoch import Run
from lightning_core.policies import sharing, vllm_command
from lightning_core.policies.sleep import SLEEP_FLAG, asleep, wake
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import VllmError


class Noted:
    def __init__(self, *flags: str) -> None:
        self.state = SimpleNamespace(command=["vllm", *flags], weights="/w/v0003", version="v0003", served_name="p")
        self.asked: list[Any] = []
        self.asleep = False
        self.refuses = False

    @contextmanager
    def client(self) -> Iterator[Noted]:
        yield self

    def sleep(self, level: int) -> None:
        self.asked.append(("sleep", level))

    def wake_up(self, what: str | None = None) -> None:
        self.asked.append(("wake", what))
        if self.refuses:
            raise VllmError("no")

    def reload_weights(self, folder: Path) -> None:
        self.asked.append(("reload", str(folder)))

    def reset_prefix_cache(self) -> None:
        self.asked.append("reset")

    def logprobs(self, model: str) -> None:
        self.asked.append("probe")

    def restart(self, weights: Path, version: str) -> None:
        self.asked.append(("restart", version))

    def as_vllm(self) -> VllmServer:
        return cast(VllmServer, self)


def test_full_weights_are_forgotten_and_not_read_again_before_there_are_new_ones() -> None:
    vllm = Noted(SLEEP_FLAG)
    with asleep(vllm.as_vllm(), 2):
        vllm.asked.append("training")
    assert vllm.asked == [("sleep", 2), "training"] and vllm.asleep


def test_full_weights_come_back_before_the_cache_where_training_failed_or_made_nothing() -> None:
    vllm = Noted(SLEEP_FLAG)
    with pytest.raises(ZeroDivisionError), asleep(vllm.as_vllm(), 2):
        raise ZeroDivisionError
    woken = [("wake", "weights"), ("reload", "/w/v0003"), ("wake", "kv_cache"), "reset", "probe"]
    assert vllm.asked == [("sleep", 2), *woken] and not vllm.asleep
    wake(vllm.as_vllm())
    assert vllm.asked == [("sleep", 2), *woken], "it is awake"
    with asleep(vllm.as_vllm(), 2):
        pass
    wake(vllm.as_vllm())
    assert vllm.asked[6:] == [("sleep", 2), *woken]


def test_under_adapters_the_base_model_waits_in_memory_and_comes_back_at_once() -> None:
    vllm = Noted(SLEEP_FLAG)
    with asleep(vllm.as_vllm(), 1):
        pass
    assert vllm.asked == [("sleep", 1), ("wake", None), "probe"] and not vllm.asleep


def test_one_that_does_not_wake_up_is_started_anew() -> None:
    vllm = Noted(SLEEP_FLAG)
    vllm.refuses = True
    with asleep(vllm.as_vllm(), 1):
        pass
    assert vllm.asked[-1] == ("restart", "v0003") and not vllm.asleep


def test_one_that_cannot_sleep_is_not_asked_to() -> None:
    vllm = Noted()
    with pytest.raises(VllmError, match=r"without `vllm\.colocated`"), asleep(vllm.as_vllm(), 1):
        raise AssertionError("trained")
    assert vllm.asked == []


@pytest.mark.parametrize(
    ("settings", "turns"),
    [
        ("{}", True),
        ("{training_devices: ['2']}", True),  # the first that is visible, which vLLM takes too
        ("{training_devices: ['3']}", False),
        ("{vllm: {devices: ['3']}, training_devices: ['2']}", False),
        ("{vllm: {replicas: 2, devices: ['0', '1']}, training_devices: ['1,2'], policies: [{training: {processes: 2}}]}", True),
        ("{vllm: {devices: ['3']}, policies: [{training: {processes: 2}}]}", True),  # which may be any
        ("{vllm: {extra_args: [--tensor-parallel-size, '2']}, training_devices: ['3']}", True),
        ("{vllm: {extra_args: [-tp=2]}, training_devices: ['3']}", True),
        ("{vllm: {colocated: false}}", False),
        ("{vllm: {devices: ['3'], colocated: true}}", True),
    ],
)  # fmt: skip
def test_vllm_sleeps_while_it_is_trained_where_the_two_share_a_gpu(
    settings: str, turns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "cpu_build", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert sharing.takes_turns(settings_of(settings, tmp_path)) is turns


def test_on_one_gpu_there_is_no_overlap_and_on_cpus_nothing_to_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlap = "{async_level: 1, policies: [{training: {importance_correction: token_mask}}]"
    given = settings_of(overlap + "}", tmp_path)
    monkeypatch.setattr(sharing, "cpu_build", lambda: True)
    sharing.check_gpus(given)
    assert not sharing.takes_turns(given)
    monkeypatch.setattr(sharing, "cpu_build", lambda: False)
    with pytest.raises(SettingsError, match=r"have a GPU in common; give each its own by `vllm\.devices`"):
        sharing.check_gpus(given)
    sharing.check_gpus(settings_of(overlap + ", vllm: {colocated: false}}", tmp_path))


def test_vllm_is_started_and_recognised_as_one_that_sleeps_and_sleeps_while_a_policy_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sharing, vllm_command):
        monkeypatch.setattr(module, "cpu_build", lambda: False)
    settings, model = settings_of("{policies: [{lora: {}}]}", tmp_path), cast(Any, SimpleNamespace(path=tmp_path))
    started: list[VllmSettings] = []
    monkeypatch.setattr(services.VllmServer, "start", lambda given, *_, **__: started.append(given))
    services._start_vllm(Run(settings), model, 0, print)
    assert started[0].colocated
    line = vllm_command.command(
        started[0], tmp_path, "policy", Path("s"), *services._adapters(settings.policies, settings.vllm)
    )
    state = SimpleNamespace(command=line, device=None, replica=0, weights=str(tmp_path))
    assert services._is_as_started(cast(Any, SimpleNamespace(state=state, socket=Path("s"))), Run(settings), model)
    slept: list[Any] = []
    monkeypatch.setattr(services, "asleep", lambda vllm, level: slept.append(vllm) or nullcontext())
    fleet = [cast(Any, SimpleNamespace(exclusive=nullcontext))]
    with services.vllm_asleep(Run(settings), services.Services(cast(Any, None), fleet, model)):
        assert slept == fleet


def settings_of(changes: str, home: Path) -> Settings:
    always = {"run": "r", "home": str(home), "agent": {"command": "true"}, "tasks": {"train": "x:y"}}
    return Settings.model_validate(always | yaml.safe_load(changes))


@pytest.mark.parametrize("cpu", [True, False])
def test_only_a_vllm_for_cuda_is_started_able_to_sleep(cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_command, "cpu_build", lambda: cpu)
    arguments = (VllmSettings(colocated=True), Path("m"), "p", Path("s"), None, 0)
    if cpu:
        with pytest.raises(VllmError, match=r"vllm\.colocated: .*CUDA"):
            vllm_command.command(*arguments)
    else:
        assert SLEEP_FLAG in vllm_command.command(*arguments)
