"""MLflow's registry is written by whoever reaches its address: nothing that it says writes or removes what is not its own."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.policies.store import Lineage, PolicyStore
from lightning_core.tracking.mlflow_backend import MlflowRun, tracking_uri
from lightning_core.tracking.registry import connect
from lightning_flows.flows.cli import main
from lightning_flows.tasks.versions import prune_versions
from tests.policy_files import store_with_base, write_model

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the base and three versions in the store: the next removal takes v0001. MLflow's database is empty."""
    home = tmp_path_factory.mktemp("published") / "home"
    store = store_with_base(home)
    for number in (1, 2, 3):
        lineage = Lineage(run="r", epoch=number - 1, base_model="base", parent=f"v{number - 1:04d}")
        store.publish(write_model(home / "training" / str(number), float(number)), lineage)
    store.set_current("v0003")
    connect(f"sqlite:///{home / 'mlflow.db'}").search_experiments()  # makes it, which takes seconds
    return home


@dataclass
class Registry:
    """A home whose registry is tampered with."""

    home: Path
    settings: Settings
    store: PolicyStore
    client: Any

    @property
    def number(self) -> str:
        """MLflow's number of v0001."""
        return next(v.version for v in self.client.search_model_versions("name = 'r.policy'"))

    def claims(self, **tags: str) -> None:
        """Have the registration of v0001 say something else."""
        for key, value in tags.items():
            self.client.set_model_version_tag("r.policy", self.number, key, value)

    def says(self, source: str, run_id: str | None) -> None:
        """Register v0001 once more, from somewhere else, in place of the first registration."""
        tags = self.client.get_model_version("r.policy", self.number).tags
        self.client.delete_model_version("r.policy", self.number)
        self.client.create_model_version("r.policy", source=source, run_id=run_id, tags=tags)

    def fetch(self, version: str, into: Path) -> Result:
        arguments = ["policies", "fetch", "r.policy", version, "--home", str(self.home), "--into", str(into)]
        return CliRunner().invoke(main, arguments)


@pytest.fixture
def registry(tmp_path: Path, published: Path) -> Registry:
    home = tmp_path / "home"
    shutil.copytree(published, home)
    given = {"run": "r", "home": home, "agent": {"command": "true"}, "tasks": {"train": "x:y"}}
    settings, store = Settings.model_validate(given), PolicyStore(home, "policy")
    MlflowRun(settings).version(store, "v0001")
    return Registry(home, settings, store, connect(tracking_uri(settings.tracking, home)))


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("name", ["{outside}/v0001", "../outside/v0001", "..", "", "v1", "v0001/../../outside/v0001"])
def test_the_name_of_a_version_leads_nowhere_else(registry: Registry, tmp_path: Path, name: str) -> None:
    outside, into = tmp_path / "outside", tmp_path / "into"
    registry.claims(version=name.format(outside=outside))
    registry.client.set_registered_model_alias("r.policy", "champion", registry.number)
    done = registry.fetch("champion", into)
    assert done.exit_code == 1 and "no version of a policy" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not outside.exists() and contents(into) == {}


Source = Callable[[Registry, Path], str]


def of_the_store(registry: Registry, victim: Path) -> str:
    return str(registry.store.path("v0002"))


def somewhere(registry: Registry, victim: Path) -> str:
    return str(victim)


def as_a_url(registry: Registry, victim: Path) -> str:
    return victim.as_uri()


def by_dots(registry: Registry, victim: Path) -> str:
    root = registry.client.get_run(MlflowRun(registry.settings).run_id).info.artifact_uri
    return f"{root}/policies/policy/v0001/../../../../../../../{victim.name}"


@pytest.mark.parametrize("source", [of_the_store, somewhere, as_a_url, by_dots])
@pytest.mark.parametrize("with_run", [True, False])
def test_no_folder_is_removed_or_read_because_the_registry_names_it(
    registry: Registry, tmp_path: Path, source: Source, with_run: bool, caplog: pytest.LogCaptureFixture
) -> None:
    victim = tmp_path / "victim"
    shutil.copytree(registry.store.path("v0001"), victim)
    before = contents(victim) | contents(registry.store.path("v0002"))
    registry.says(source(registry, victim), MlflowRun(registry.settings).run_id if with_run else None)
    assert "which is not where its run keeps versions" in registry.fetch("v0001", tmp_path / "into").stderr
    assert prune_versions(Run(registry.settings)) == {"policy": ["v0001"]}
    assert contents(victim) | contents(registry.store.path("v0002")) == before
    assert "nothing of it is removed" in caplog.text


def test_no_link_among_the_artifacts_leads_a_removal_elsewhere(registry: Registry, tmp_path: Path) -> None:
    (kept,) = (registry.home / "mlflow-artifacts").rglob("policies/policy")
    victim = tmp_path / "victim"
    shutil.move(kept, victim)
    kept.symlink_to(victim)
    before = contents(victim)
    prune_versions(Run(registry.settings))
    assert "v0001" not in registry.store.versions() and contents(victim) == before


def test_no_link_among_the_artifacts_is_fetched(registry: Registry, tmp_path: Path) -> None:
    (kept,) = (registry.home / "mlflow-artifacts").rglob("policies/policy/v0001/config.json")
    (tmp_path / "secret").write_bytes(kept.read_bytes())
    kept.unlink()
    kept.symlink_to(tmp_path / "secret")
    done = registry.fetch("v0001", tmp_path / "into")
    assert done.exit_code == 1 and "config.json is a link" in done.stderr and contents(tmp_path / "into") == {}


def test_a_forged_registration_is_not_taken_for_ones_own(registry: Registry, tmp_path: Path) -> None:
    registry.says(str(tmp_path), None)
    tracked = MlflowRun(registry.settings)
    tracked.version(registry.store, "v0001")
    sources = [v.source for v in registry.client.search_model_versions("name = 'r.policy'")]
    assert len(sources) == 2 and len([s for s in sources if s.endswith("policies/policy/v0001")]) == 1


def test_a_registration_that_lies_does_not_keep_the_others(registry: Registry, tmp_path: Path) -> None:
    """What is there beside it is fetched and removed as ever."""
    registry.client.create_registered_model("it's", tags={"policy": "policy"})
    registry.client.create_model_version("it's", source=str(tmp_path), tags={"version": "../x", "policy": "policy"})
    assert registry.fetch("v0001", tmp_path / "into").exit_code == 0
    (kept,) = (registry.home / "mlflow-artifacts").rglob("policies/policy/v0001")
    assert prune_versions(Run(registry.settings)) == {"policy": ["v0001"]}
    assert not kept.exists()
