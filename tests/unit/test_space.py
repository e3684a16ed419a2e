"""The space on disk that we report for a run is what it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.policies.space import Estimate, estimate, free, space_taken, taken_line
from lightning_core.policies.store import Lineage
from lightning_core.tracking.registry import _link_folder
from lightning_flows.tasks.versions import prune_versions
from tests.policy_files import store_with_base, write_model

COLUMNS = 20_000
PARAMETERS = 5 * COLUMNS  # of `write_model`


def settings(home: Path, **more: Any) -> Settings:
    given = {"run": "r", "home": home, "epochs": 10, "agent": {"command": "true"}, "tasks": {"train": "x:y"}}
    return Settings.model_validate(given | {"policies": [{"model": str(home / "models/base")}]} | more)


def estimated(home: Path, **more: Any) -> Estimate:
    found = estimate(settings(home, **more))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("store", "kept"), [({}, ["v0009", "v0010"]), ({"keep_every": 1}, [f"v{n:04d}" for n in range(1, 11)])]
)
def test_the_versions_that_ten_epochs_leave_take_what_was_estimated(
    tmp_path: Path, store: dict[str, Any], kept: list[str]
) -> None:
    write_model(tmp_path / "models/base", columns=COLUMNS)
    policies = store_with_base(tmp_path)
    for number in range(10):
        lineage = Lineage(run="r", epoch=number, base_model="base", parent=f"v{number:04d}")
        made = policies.publish(write_model(tmp_path / "out", number + 1.0, columns=COLUMNS), lineage)
        policies.set_current(made)
        # MLflow's registry has links.
        artifacts = tmp_path / "mlflow-artifacts" / made
        artifacts.parent.mkdir(exist_ok=True)
        _link_folder(policies.path(made), artifacts)
        for gone in prune_versions(Run(settings(tmp_path, store=store))).get("policy", []):
            for file in (tmp_path / "mlflow-artifacts" / gone).iterdir():
                file.unlink()
    assert policies.versions() == ["v0000", *kept]
    found = estimated(tmp_path, store=store)
    assert found.versions == 4 * PARAMETERS * len(kept)
    taken = space_taken(tmp_path)
    assert taken["policies"] == pytest.approx(found.versions, rel=0.15), "and small files"
    assert taken["models"] == pytest.approx(4 * PARAMETERS, rel=0.15)
    assert taken["mlflow"] < 0.1 * found.versions, "links"
    assert sum(taken.values()) == sum(
        f.lstat().st_blocks * 512 for f in {f.lstat().st_ino: f for f in tmp_path.rglob("*") if f.is_file()}.values()
    )


def test_the_demos_estimate_is_near_what_it_leaves() -> None:
    """135M parameters, ten epochs: the last two versions and the best are 542 MB each, a state twice that."""
    demo = settings(
        Path("var/demo"), models="/nowhere", policies=[{"model": "owner/SmolLM2-135M-Instruct"}],
        tasks={"train": "x:y", "evaluate": "x:z"}, evaluation={"every": 5, "limit": 64},
        rollout={"tasks_per_epoch": 56, "group_size": 4},
    )  # fmt: skip
    found = estimate(demo)
    assert found is not None
    assert found.versions == pytest.approx(3 * 0.542e9, rel=0.01)
    assert found.optimizer == pytest.approx(2 * 2 * 0.542e9, rel=0.01)
    assert found.model == pytest.approx(0.542e9, rel=0.01), "it has to be fetched"
    assert found.rollouts < 0.2e9
    assert str(found).startswith("about 4.5 GB at its end (model 540 MB, versions 1.6 GB, optimizer states 2.2 GB, ")


def test_what_changes_the_space_changes_the_estimate(tmp_path: Path) -> None:
    write_model(tmp_path / "models/base", columns=COLUMNS)
    model = str(tmp_path / "models/base")
    assert estimated(tmp_path, epochs=40).versions == 4 * PARAMETERS * 5, "v0010, v0020, v0030, v0039 and v0040"
    assert estimated(tmp_path, policies=[{"model": model, "train_every": 0}]).optimizer == 0
    adapter = estimated(tmp_path, policies=[{"model": model, "lora": {"rank": 2, "target_modules": ["embed"]}}])
    assert adapter.versions == 4 * 2 * (4 + COLUMNS) * 2
    without = estimated(tmp_path, policies=[{"model": model, "training": {"checkpoint_seconds": None}}])
    assert without.meanwhile < estimated(tmp_path).meanwhile
    assert estimate(settings(tmp_path, models="/nowhere", policies=[{"model": "owner/name"}])) is None


def test_a_home_says_what_it_takes_by_part(tmp_path: Path) -> None:
    for name, size in {
        "logs/gateway.log": 3,
        "prefect/prefect.db": 2,
        "lake/spans/a": 4,
        "spool/b": 1,
        "signals/x": 1,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(os.urandom(size * 1_000_000))
    (tmp_path / "logs/gone").symlink_to("nowhere")
    taken = space_taken(tmp_path)
    assert {part: round(size / 1e6) for part, size in taken.items()} == {
        "lake": 5, "logs": 3, "prefect": 2, "other": 1,
    }  # fmt: skip
    assert list(taken) == ["lake", "logs", "prefect", "other"]
    assert taken_line(tmp_path) == f"11 MB on disk in {tmp_path}: lake 5 MB, logs 3 MB, prefect 2 MB, other 1 MB"
    assert space_taken(tmp_path / "nowhere") == {}
    assert free(tmp_path / "not/made/yet") > 0
