"""Progress is shown in Prefect's UI, and never at the cost of the work."""

from __future__ import annotations

import threading
import time
from typing import Any
from uuid import UUID, uuid4

import pytest

from lightning_flows.tasks import progress
from lightning_flows.tasks.progress import Progress


class Api:
    """In place of Prefect's, which may be away: a call then takes until it is back."""

    def __init__(self) -> None:
        self.shown: list[tuple[float, str]] = []
        self.there = threading.Event()
        self.there.set()

    def create(self, *, progress: float, description: str) -> UUID:
        self.update(artifact_id=uuid4(), progress=progress, description=description)
        return uuid4()

    def update(self, *, artifact_id: UUID, progress: float, description: str) -> None:
        self.there.wait(30)
        self.shown.append((progress, description))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api()
    monkeypatch.setattr(progress, "create_progress_artifact", made.create)
    monkeypatch.setattr(progress, "update_progress_artifact", made.update)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_LAST_S", 0.2)

    class Context:
        get: Any = staticmethod(lambda: True)

    monkeypatch.setattr(progress, "FlowRunContext", Context)
    return made


def test_the_end_is_shown_before_the_work_goes_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LAST_S", 5.0)
    work = Progress("rollouts", 3)
    for _ in range(3):
        work.add()
    assert api.shown[-1][0] == 100.0


def test_work_does_not_wait_for_an_api_that_is_away_and_is_shown_when_it_is_back(api: Api) -> None:
    api.there.clear()
    began = time.monotonic()
    work = Progress("rollouts", 100)
    for _ in range(50):
        work.add()
    assert time.monotonic() - began < 5
    assert api.shown == []
    api.there.set()
    for _ in range(49):
        work.add()
        time.sleep(0.01)
    work.add()
    assert api.shown[-1][0] == 100.0
