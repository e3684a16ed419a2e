"""A shard of rollouts: each is run once, what came of it is counted, and one fault of ours ends the rest."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.plan import Task, plan_training
from lightning_core.lake.manifest import EpochManifest
from lightning_flows.tasks import shard as module


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs 40 rollouts with what stands for an attempt; returns the shard's answer."""
    agent = {"agent": {"callable": "a:b"}, "tasks": {"train": "a:b"}}
    settings = Settings.model_validate({**agent, "home": tmp_path, "rollout": {"tasks_per_epoch": 5}})
    epoch = Epoch(settings, EpochManifest(run="default", epoch=0, opened_offset=0))
    planned = plan_training(epoch, [Task(f"t{n}", {"n": n}) for n in range(5)], 0)

    def run(attempt: Any) -> dict[str, Any]:
        runner = SimpleNamespace(close=lambda: None)

        @contextlib.contextmanager
        def shared(*_: Any) -> Iterator[Any]:
            yield runner

        monkeypatch.setattr(module, "shared_runner", shared)
        monkeypatch.setattr(module, "run_rollout", lambda runner, spec, retries: attempt(spec.args[1]))
        place: dict[str, Any] = {"number": 1, "of": 4, "total": len(planned)}
        return module.rollout_shard.fn(epoch, cast(Any, SimpleNamespace()), planned, **place)

    return run


def test_every_rollout_is_run_once_and_counted(shard: Any) -> None:
    ran: list[str] = []

    def attempt(planned: Any) -> Any:
        ran.append(planned.rollout_id)
        failed = len(ran) % 10 == 0
        return SimpleNamespace(status="error" if failed else "ok", error="no" if failed else None)

    answer = shard(attempt)
    assert len(set(ran)) == len(ran) == 40
    assert answer == {"statuses": {"ok": 36, "error": 4}, "errors": {"no": 4}, "claimed_before": 0}


def test_after_a_fault_of_ours_no_further_rollout_is_begun(shard: Any) -> None:
    ran: list[str] = []
    failed = threading.Event()

    def attempt(planned: Any) -> Any:
        ran.append(planned.rollout_id)
        if len(ran) == 3:
            failed.set()
            raise ZeroDivisionError
        failed.wait(10)
        threading.Event().wait(0.2)
        return SimpleNamespace(status="ok", error=None)

    with pytest.raises(ZeroDivisionError):
        shard(attempt)
    assert len(ran) < 10
