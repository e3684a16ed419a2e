"""MLflow's registry carries every version: files, lineage, aliases; alone it is enough to load one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.policies.prune import prune
from lightning_core.policies.store import Evaluation, Lineage, PolicyStore, StoreError
from lightning_core.policies.version_manifest import digest_files
from lightning_core.tracking.mlflow_backend import MlflowRun, tracking_uri
from lightning_core.tracking.prune import prune_everywhere
from lightning_core.tracking.registry import connect, forget, load
from lightning_flows.flows.cli import main
from lightning_flows.tasks.versions import prune_versions
from tests.policy_files import store_with_base, write_model

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds."""
    home = tmp_path_factory.mktemp("empty")
    connect(f"sqlite:///{home / 'mlflow.db'}").search_experiments()
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, migrated: Path) -> Path:
    """Three versions of one policy."""
    home = tmp_path / "home"
    store = store_with_base(home)
    shutil.copyfile(migrated, home / "mlflow.db")
    for number in (1, 2, 3):
        lineage = Lineage(
            run="r", epoch=number - 1, base_model="base", parent=f"v{number - 1:04d}", settings_digest="s",
            sequences=f"derived/r/{number - 1}/sequences.parquet", sequences_digest="q",
        )  # fmt: skip
        store.publish(write_model(home / "training" / str(number), float(number)), lineage)
    store.set_current("v0003")
    return home


@pytest.fixture
def settings(home: Path) -> Settings:
    given = {"run": "r", "home": home, "agent": {"command": "true"}, "tasks": {"train": "x:y"}}
    return Settings.model_validate(given)


def test_a_tracking_server_that_is_away_begins_no_second_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = MlflowRun(settings).run_id
    away = MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE)
    monkeypatch.setattr(MlflowClient, "get_run", Mock(side_effect=away))
    with pytest.raises(MlflowException, match="away"):
        MlflowRun(settings)
    monkeypatch.undo()
    assert MlflowRun(settings).run_id == kept


def evaluate(store: PolicyStore, version: str, right: float) -> None:
    store.evaluated(version, Evaluation(run="r", epoch=1, tasks=20, right=right, reward=right, held_out="x"))


def test_a_version_is_registered_once_with_its_lineage_and_costs_no_disk(settings: Settings, home: Path) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    for _ in range(2):
        tracked.version(store, "v0001")
    client = connect(tracking_uri(settings.tracking, home))
    (made,) = client.search_model_versions("name = 'r.policy'")
    assert made.run_id == tracked.run_id
    assert made.tags == {
        "policy": "policy", "version": "v0001", "parent": "v0000", "run": "r", "epoch": "0", "kind": "full",
        "base_model": "base", "settings_digest": "s", "sequences": "derived/r/0/sequences.parquet",
        "sequences_digest": "q", "digest": store.manifest("v0001").digest,
    }  # fmt: skip
    linked = list((home / "mlflow-artifacts").rglob("policies/policy/v0001/model.safetensors"))
    assert [file.stat().st_ino for file in linked] == [(store.path("v0001") / "model.safetensors").stat().st_ino]


def test_champion_and_current_follow_the_store(settings: Settings, home: Path) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    client = connect(tracking_uri(settings.tracking, home))

    def alias(name: str) -> dict[str, str]:
        return client.get_model_version_by_alias("r.policy", name).tags

    assert tracked.aliases(store) == {"current": "v0003"}
    evaluate(store, "v0002", 0.5)
    evaluate(store, "v0003", 0.25)
    assert tracked.aliases(store) == {"current": "v0003", "champion": "v0002"}
    assert (alias("champion")["version"], alias("champion")["right"]) == ("v0002", "0.500000")
    assert (alias("current")["version"], alias("current")["right"]) == ("v0003", "0.250000")
    evaluate(store, "v0003", 0.75)
    store.set_current("v0001")
    assert tracked.aliases(store) == {"current": "v0001", "champion": "v0003"}
    assert alias("champion")["version"] == "v0003"
    assert alias("champion")["held_out_tasks"] == "20"


def test_the_registry_alone_loads_a_version_in_another_place(settings: Settings, home: Path, tmp_path: Path) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    evaluate(store, "v0002", 0.5)
    tracked.aliases(store)
    published = digest_files(store.path("v0002"))
    elsewhere = tmp_path / "other machine"
    elsewhere.mkdir()
    shutil.copyfile(home / "mlflow.db", elsewhere / "mlflow.db")
    shutil.copytree(home / "mlflow-artifacts", elsewhere / "mlflow-artifacts")
    shutil.rmtree(home)

    done = CliRunner().invoke(
        main,
        ["policies", "fetch", "r.policy", "champion", "--home", str(elsewhere), "--into", str(elsewhere / "models")],
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(elsewhere / "models/v0002")
    assert digest_files(elsewhere / "models/v0002") == published
    uri = f"sqlite:///{elsewhere / 'mlflow.db'}"
    assert load(uri, "r.policy", "v0003", elsewhere / "models").name == "v0003"
    with pytest.raises(StoreError, match="is there already"):
        load(uri, "r.policy", "v0003", elsewhere / "models")
    with pytest.raises(StoreError, match=r"no version or alias 'v0042'.*models: \['r.policy'\]"):
        load(uri, "r.policy", "v0042", elsewhere / "models")
    with pytest.raises(StoreError, match=r"no version or alias 'v0001' of 'x'"):
        load(uri, "x", "v0001", elsewhere / "models")
    assert sorted(p.name for p in (elsewhere / "models").iterdir()) == ["v0002", "v0003"]


def test_a_damaged_version_is_neither_registered_nor_loaded(settings: Settings, home: Path, tmp_path: Path) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    tracked.version(store, "v0001")
    (copied,) = (home / "mlflow-artifacts").rglob("policies/policy/v0001")
    os.truncate(copied / "model.safetensors", 20)  # the same file as in the store
    with pytest.raises(StoreError, match=r"model\.safetensors: 20 bytes"):
        load(tracking_uri(settings.tracking, home), "r.policy", "v0001", tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []
    (store.path("v0002") / "config.json").write_text("{}")
    with pytest.raises(StoreError, match=r"v0002/config\.json"):
        tracked.version(store, "v0002")
    client = connect(tracking_uri(settings.tracking, home))
    assert [found.tags["version"] for found in client.search_model_versions("name = 'r.policy'")] == ["v0001"]


def test_other_files_than_those_registered_are_refused(settings: Settings, home: Path, tmp_path: Path) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    for version in ("v0001", "v0002"):
        tracked.version(store, version)
    (first,) = (home / "mlflow-artifacts").rglob("policies/policy/v0001")
    shutil.rmtree(first)
    shutil.copytree(first.with_name("v0002"), first)
    manifest = first / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"v0002"', '"v0001"').replace('"parent": "v0001"', '"parent": null')
    )
    with pytest.raises(StoreError, match="other files than those registered as v0001"):
        load(tracking_uri(settings.tracking, home), "r.policy", "v0001", tmp_path / "into")


def test_what_is_removed_is_tagged_so_in_the_registry_and_its_bytes_are_free(
    settings: Settings, home: Path, tmp_path: Path
) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    for version in ("v0001", "v0002", "v0003"):
        tracked.version(store, version)
    descriptor = os.open(store.path("v0001") / "model.safetensors", os.O_RDONLY)
    try:
        assert prune_versions(Run(settings)) == {"policy": ["v0001"]}
        assert os.fstat(descriptor).st_nlink == 0, "the disk is free"
    finally:
        os.close(descriptor)
    client = connect(tracking_uri(settings.tracking, home))
    made = {found.tags["version"]: found for found in client.search_model_versions("name = 'r.policy'")}
    assert {version: found.tags.get("weights") for version, found in made.items()} == {
        "v0001": "removed", "v0002": None, "v0003": None,
    }  # fmt: skip
    assert made["v0001"].description.startswith("The weights were removed on 20")
    assert made["v0001"].tags["parent"] == "v0000", "its lineage stays"
    with pytest.raises(StoreError, match=r"r\.policy: v0001 .* removed on .* by run r .*kept: v0002"):
        load(tracking_uri(settings.tracking, home), "r.policy", "v0001", tmp_path / "into")
    assert load(tracking_uri(settings.tracking, home), "r.policy", "v0002", tmp_path / "into").name == "v0002"


def test_what_an_alias_or_a_model_of_the_users_own_names_stays(settings: Settings, home: Path) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    for number in (4, 5):
        lineage = Lineage(run="r", epoch=number - 1, base_model="base", parent=f"v{number - 1:04d}")
        store.publish(write_model(home / "training" / str(number), float(number)), lineage)
    store.set_current("v0005")
    for version in store.versions():
        tracked.version(store, version)
    client = connect(tracking_uri(settings.tracking, home))
    made = {found.tags["version"]: found for found in client.search_model_versions("name = 'r.policy'")}
    client.set_registered_model_alias("r.policy", "production", made["v0001"].version)
    client.create_registered_model("bob's")
    client.create_model_version("bob's", source=made["v0002"].source)
    done = prune_everywhere(home, "policy", None, by="a test", tracking=tracking_uri(settings.tracking, home))
    assert done.kept == {
        "v0000": ["base"],
        "v0001": ["alias production of r.policy"],
        "v0002": ["registered as bob's 1"],
        "v0004": ["parent of current"],
        "v0005": ["current", "newest"],
    }
    assert list(done.gone) == ["v0003"]


def test_nothing_is_removed_while_the_registry_cannot_be_asked(
    settings: Settings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with_base(home)
    away = MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE)
    monkeypatch.setattr(MlflowClient, "search_registered_models", Mock(side_effect=away))
    assert prune_versions(Run(settings)) == {}
    assert len(store.versions()) == 4


def test_what_a_removal_that_was_killed_left_in_the_registry_goes_with_the_next(settings: Settings, home: Path) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    tracked.version(store, "v0001")
    assert list(prune(home, "policy").gone) == ["v0001"]
    (left,) = (home / "mlflow-artifacts").rglob("policies/policy/v0001")
    assert prune_versions(Run(settings)) == {"policy": []}
    assert not left.exists()


def test_models_past_the_first_page_are_seen(settings: Settings, home: Path) -> None:
    store, tracked = store_with_base(home), MlflowRun(settings)
    client = connect(tracking_uri(settings.tracking, home))
    for number in range(100):
        client.create_registered_model(f"a{number:03d}")
    tracked.version(store, "v0001")
    assert forget(client, "policy", {("v0001", store.manifest("v0001").digest): "removed"}) == 1
