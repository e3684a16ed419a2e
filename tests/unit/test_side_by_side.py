"""Policies trained one after another, or side by side on several devices."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_core.config import PolicySettings, Settings, SettingsError
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.training import Made
from lightning_core.lake.manifest import EpochManifest
from lightning_core.training import launch
from lightning_core.training.errors import TrainingFailed
from lightning_core.training.job import Job
from lightning_flows.tasks import train
from tests import lake_maker
from tests.unit.test_several_policies import policy

pytestmark = pytest.mark.slow  # imports of half a minute

EPOCH = EpochManifest(run="run", epoch=0, opened_offset=0)


def settings(home: Path, devices: list[str]) -> Settings:
    return lake_maker.settings(home, policies=[policy(n) for n in ("a", "b", "c")], training_devices=devices)


def test_as_many_are_trained_at_one_time_as_there_are_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, used, written = threading.Barrier(2), list[str | None](), list[str]()

    def one(_: Epoch, policy: PolicySettings, device: str | None) -> train.Trained:
        used.append(device)
        if policy.name in ("a", "b"):
            both.wait(20)  # goes on only where the other one is under way too
        output = {"version": policy.name, "device": device}
        return train.Trained({policy.name: output}, lambda: written.append(policy.name))

    monkeypatch.setattr(train, "train_policy", one)
    done = train.train_policies(Epoch(settings(tmp_path, ["0", "1"]), EPOCH)).outputs
    assert sorted(written) == ["a", "b", "c"], "what follows may take long, or fail"
    assert {name: output["version"] for name, output in done.items()} == {"a": "a", "b": "b", "c": "c"}
    assert {done["a"]["device"], done["b"]["device"]} == {"0", "1"}
    assert len(used) == 3 and set(used) == {"0", "1"}


def test_without_devices_one_is_trained_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str | None]] = []
    monkeypatch.setattr(train, "train_policy", lambda _, p, device: order.append((p.name, device)) or train.Trained({}))
    train.train_policies(Epoch(settings(tmp_path, []), EPOCH))
    assert order == [("a", None), ("b", None), ("c", None)]
    train.train_policies(Epoch(settings(tmp_path, ["1"]), EPOCH))
    assert order[3:] == [("a", "1"), ("b", "1"), ("c", "1")]


def test_where_one_fails_the_other_comes_to_its_end_and_the_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, ended = threading.Event(), []

    def one(_: Epoch, policy: PolicySettings, __: str | None) -> train.Trained:
        if policy.name == "a":
            failed.set()
            raise ValueError("diverged")
        failed.wait(20)
        ended.append(policy.name)
        return train.Trained({})

    monkeypatch.setattr(train, "train_policy", one)
    with pytest.raises(ValueError, match="diverged"):
        train.train_policies(Epoch(settings(tmp_path, ["0", "1"]), EPOCH))
    assert "b" in ended


def test_what_the_training_process_warns_of_is_told_where_the_run_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def trained(*given: Any) -> Made:
        tell = next(one for one in given if callable(one))
        tell({"warning": "packing `tree` is not possible: a sliding window"})
        tell({"resumed_at": 2, "steps": 6})
        return Made({"version": "v0001", "metrics": {}})

    monkeypatch.setattr(train, "train_version", trained)
    monkeypatch.setattr(train, "train_key", lambda *_: "key")
    monkeypatch.setattr(train, "resolve_model", lambda *_: SimpleNamespace(path=tmp_path))
    monkeypatch.setattr(train, "run_stage", lambda epoch, stage, key, work, save: work())
    of = settings(tmp_path, [])
    with caplog.at_level("INFO"):
        train.train_policy.fn(Epoch(of, EPOCH.model_copy(update={"versions": {"a": "v0000"}})), of.policies[0])
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert levels["a: packing `tree` is not possible: a sliding window"] == "WARNING"
    assert levels["a: going on after step 2 of 6"] == "INFO"


def test_only_the_named_policies_are_trained(tmp_path: Path) -> None:
    every = settings(tmp_path, [])
    chosen = every.training_only(["b"])
    assert {p.name: p.trains_in(0) for p in chosen.policies} == {"a": False, "b": True, "c": False}
    assert every.training_only([]) == every
    with pytest.raises(SettingsError, match="no policy 'd' to train; the settings have a, b, c"):
        every.training_only(["d"])


def job(folder: Path, **changes: Any) -> Job:
    places = {name: folder / name for name in ("base_model", "sequences", "output", "state", "progress")}
    return Job(run="run", epoch=0, policy="a", policy_settings=policy("a"), **places, **changes)


def test_an_interrupt_ends_the_trainings_of_every_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    with ThreadPoolExecutor(2) as threads:
        futures = [
            threads.submit(launch.train, job(tmp_path / n), lambda _: None, tmp_path / n / "log") for n in ("a", "b")
        ]
        while len(launch._running) < 2:
            assert not any(future.done() for future in futures)
        launch.end_all()
        for future in futures:
            with pytest.raises(TrainingFailed, match="ended with -15"):
                future.result(20)
    assert not launch._running


def test_a_training_sees_its_device_and_its_share_of_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    beside = launch._environment(job(tmp_path, device="3", beside=2))
    assert (beside["CUDA_VISIBLE_DEVICES"], beside["OMP_NUM_THREADS"]) == ("3", "4")
    assert "OMP_NUM_THREADS" not in launch._environment(job(tmp_path))
