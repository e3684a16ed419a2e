"""A damaged version is neither served nor trained from: the error comes before anything is touched."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from lightning_core.config import Settings
from lightning_core.epoch import deploy, services, training
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.lake.manifest import DerivedTable, EpochManifest
from lightning_core.policies.store import Lineage, PolicyStore, StoreError
from lightning_core.training.job import Job
from lightning_core.training.launch import Trained
from tests.policy_files import store_with_base, write_model

NOTHING: Any = None  # where nothing may come so far as to use it


class Untouched:
    """Stands for a running service; whoever asks it for more than whether it sleeps has gone too far."""

    asleep = False

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"asked for {name}")


@pytest.fixture
def damaged(tmp_path: Path) -> PolicyStore:
    store = store_with_base(tmp_path)
    store.set_current("v0000")
    store.publish(write_model(tmp_path / "out", 1.0), Lineage(run="r", epoch=0, base_model="base", parent="v0000"))
    weights = store.path("v0001") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"run": "r", "home": tmp_path, "agent": {"command": "true"}, "tasks": {"train": "x:y"}}
    )


def test_a_damaged_version_is_not_deployed_and_what_is_served_stays(damaged: PolicyStore, settings: Settings) -> None:
    running: Any = SimpleNamespace(gateway=Untouched(), fleet=[Untouched()], model=None)
    with pytest.raises(StoreError, match=r"v0001/model\.safetensors: its content is not what was published"):
        deploy.deploy(Run(settings), running, {"policy": "v0001"})
    assert damaged.current() == "v0000"


def test_vllm_is_not_started_on_a_damaged_version(
    damaged: PolicyStore, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(services, "VllmServer", Untouched())
    damaged.set_current("v0001")
    with pytest.raises(AssertionError, match="asked for start"):
        services._start_vllm(Run(settings), NOTHING, 0, print)
    assert "v0001/model.safetensors: its content is not what was published" in caplog.text
    assert "vLLM starts with v0000" in caplog.text, "and what the flow wants is deployed, or refused, then"


def test_nothing_is_trained_from_a_damaged_version(
    damaged: PolicyStore, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "write_sequences", lambda *_: 1)
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("it was trained from"))
    epoch = EpochManifest(
        run="r", epoch=1, opened_offset=0, versions={"policy": "v0001"},
        tables={"sequences": DerivedTable(path="derived/r/1/sequences.parquet", rows=1, digest="d")},
    )  # fmt: skip
    with pytest.raises(StoreError, match=r"v0001/model\.safetensors"):
        training.train_version(Epoch(settings, epoch), settings.policies[0], tmp_path, print)
    assert damaged.versions() == ["v0000", "v0001"]


def test_what_was_trained_gets_the_next_number_where_another_run_took_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, publish = store_with_base(tmp_path), PolicyStore._publish
    taken: list[Path] = []

    def train(job: Job, *_: object, **__: object) -> Trained:
        write_model(job.output, 2.0)
        (job.output / "training.json").write_text("{}")
        (job.state / "epoch-0000").mkdir(parents=True)
        (job.state / "epoch-0000" / "state.json").write_text("{}")
        return Trained({"left_out": {}})

    def beaten(self: PolicyStore, folder: Path, lineage: Lineage, version: str, files: dict[str, Any]) -> str:
        if not taken:
            taken.append(write_model(tmp_path / "theirs", 1.0))
            publish(self, taken[0], Lineage(run="other", epoch=0, base_model="base"), version, {})
        return publish(self, folder, lineage, version, files)

    monkeypatch.setattr(training, "write_sequences", lambda epoch, policy, target: target.write_text("x"))
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(PolicyStore, "_publish", beaten)
    epoch = EpochManifest(
        run="r", epoch=0, opened_offset=0, versions={"policy": "v0000"},
        tables={"sequences": DerivedTable(path="derived/r/0/sequences.parquet", rows=1, digest="d")},
    )  # fmt: skip
    made = training.train_version(Epoch(settings, epoch), settings.policies[0], tmp_path, print)
    done = made.output
    made.write()
    (state,) = tmp_path.rglob("state.json")
    assert json.loads(state.read_text()) == {"version": "v0002"}, "whose moments they are"
    assert done["version"] == "v0002" and store.manifest("v0001").run == "other" and store.manifest("v0002").run == "r"
