"""Policies trained one after another, or side by side on several devices."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from flows.train_agents import select
from lightning_core.config import PolicySettings, Settings, SettingsError
from lightning_core.lake.manifest import EpochManifest
from tasks import train
from tests import lake_maker
from tests.unit.test_several_policies import policy

EPOCH = EpochManifest(run="run", epoch=0, opened_offset=0)


def settings(home: Path, devices: list[str]) -> Settings:
    return lake_maker.settings(home, policies=[policy(n) for n in ("a", "b", "c")], training_devices=devices)


def test_as_many_are_trained_at_one_time_as_there_are_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, used = threading.Barrier(2), []

    def one(_: Settings, policy: PolicySettings, __: EpochManifest, device: str | None) -> dict[str, Any]:
        used.append(device)
        if policy.name in ("a", "b"):
            both.wait(20)  # goes on only where the other one is under way too
        return {"version": policy.name, "device": device}

    monkeypatch.setattr(train, "train_policy", one)
    done = train.train_policies(settings(tmp_path, ["0", "1"]), EPOCH)
    assert {name: output["version"] for name, output in done.items()} == {"a": "a", "b": "b", "c": "c"}
    assert {done["a"]["device"], done["b"]["device"]} == {"0", "1"}
    assert len(used) == 3 and set(used) == {"0", "1"}


def test_without_devices_one_is_trained_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str | None]] = []
    monkeypatch.setattr(train, "train_policy", lambda _, p, __, device: order.append((p.name, device)) or {})
    train.train_policies(settings(tmp_path, []), EPOCH)
    assert order == [("a", None), ("b", None), ("c", None)]
    train.train_policies(settings(tmp_path, ["1"]), EPOCH)
    assert order[3:] == [("a", "1"), ("b", "1"), ("c", "1")]


def test_where_one_fails_the_other_comes_to_its_end_and_the_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, ended = threading.Event(), []

    def one(_: Settings, policy: PolicySettings, __: EpochManifest, ___: str | None) -> dict[str, Any]:
        if policy.name == "a":
            failed.set()
            raise ValueError("diverged")
        failed.wait(20)
        ended.append(policy.name)
        return {}

    monkeypatch.setattr(train, "train_policy", one)
    with pytest.raises(ValueError, match="diverged"):
        train.train_policies(settings(tmp_path, ["0", "1"]), EPOCH)
    assert "b" in ended


def test_only_the_named_policies_are_trained(tmp_path: Path) -> None:
    every = settings(tmp_path, [])
    chosen = select(every, ["b"])
    assert {p.name: p.trains_in(0) for p in chosen.policies} == {"a": False, "b": True, "c": False}
    assert select(every, None) is every
    with pytest.raises(SettingsError, match="no policy 'd' to train; the settings have a, b, c"):
        select(every, ["d"])
