"""Versions of prompts in MLflow's own prompt registry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.manifest import EpochManifest
from lightning_core.prompts.store import PromptStore
from lightning_core.tracking import mlflow_backend
from lightning_core.tracking.mlflow_backend import MlflowRun
from lightning_core.tracking.prompts import register_prompts
from lightning_core.tracking.registry import connect
from lightning_flows.tasks import track
from tests.lake_maker import settings

pytestmark = pytest.mark.slow  # an MLflow database


def test_versions_are_registered_once_with_what_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    client, name = connect(f"sqlite:///{tmp_path}/mlflow.db"), "r.prompts.writer"
    store = PromptStore(tmp_path, "writer")
    store.read_file("Write {{well}}.", Path("writer.md"))
    assert register_prompts(client, name, store) == {"current": "p0000"}
    store.read_file("Write better.", Path("writer.md"))
    store.put("best", "p0000")
    for _ in range(2):
        assert register_prompts(client, name, store) == {"current": "p0001", "champion": "p0000"}
    found = sorted(client.search_prompt_versions(name), key=lambda version: version.version)
    assert [(v.version, v.template, v.commit_message, v.tags["version"], v.tags["parent"]) for v in found] == [
        (1, "Write {{well}}.", "writer.md", "p0000", ""),
        (2, "Write better.", "edit of writer.md", "p0001", "p0000"),
    ]
    assert client.get_prompt_version_by_alias(name, "current").version == 2
    assert client.load_prompt(f"prompts:/{name}@champion").template == "Write {{well}}."
    assert not {"mlruns", "mlflow.db"} & set(os.listdir(Path(__file__).parents[2]))


def test_a_registry_that_fails_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(tmp_path)
    epoch = Epoch(given, EpochManifest(run="r", epoch=0, opened_offset=0, prompt_versions={"writer": "p0000"}))
    epoch.policies = {}
    run = MlflowRun(given)
    monkeypatch.setattr(mlflow_backend, "register_prompts", lambda *_: 1 / 0)
    with caplog.at_level("WARNING"):
        track._versions(epoch, run)
    assert "MLflow's registry has no new versions of prompt writer: division by zero" in caplog.text


def test_more_versions_than_a_page_has_are_registered_once(tmp_path: Path) -> None:
    client, store = connect(f"sqlite:///{tmp_path}/mlflow.db"), PromptStore(tmp_path, "writer")
    for number in range(120):
        store.add(f"Text {number}", "an optimizer", None)
    for _ in range(2):
        register_prompts(client, "w", store)
    numbers = [version.version for version in client.search_prompt_versions("w", max_results=1000)]
    assert sorted(numbers) == list(range(1, 121))
