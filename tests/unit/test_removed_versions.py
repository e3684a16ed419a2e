"""What asks for a version that was removed: it says which, by what rule and what to do, before anything runs or is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Run
from lightning_core.lake.manifest import DerivedTable, EpochManifest, Manifests
from lightning_core.policies.model import ModelError, resolve_model
from lightning_core.policies.prune import prune as remove
from lightning_core.policies.store import Lineage, StoreError
from lightning_flows.flows import finetune as finetune_flow
from lightning_flows.flows.evaluate import evaluate
from lightning_flows.flows.roll_out import roll_out
from lightning_flows.flows.train_epoch import train_epoch
from tests.policy_files import store_with_base, write_model
from tests.unit.test_stage_keys import settings_of

GONE = r"v0001 was removed on 20\S+ \S+ by run r \(.*the nearest that are kept: v0000 and v0003\..*keep_every: 1"


@pytest.fixture
def trained(tmp_path: Path) -> Settings:
    """Four epochs of run `r`, v0001 to v0004; then what nothing needs went."""
    store = store_with_base(tmp_path)
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": "a", "question": "?"}\n{"id": "b", "question": "!"}\n')
    for number in range(4):
        lineage = Lineage(run="r", epoch=number, base_model="base", parent=f"v{number:04d}")
        made = store.publish(write_model(tmp_path / f"out{number}", number + 1.0), lineage)
        epoch = EpochManifest(run="r", epoch=number, opened_offset=0, versions={"policy": f"v{number:04d}"})
        epoch.tables["sequences"] = DerivedTable(path="sequences.parquet", rows=1, digest="d")
        for stage in ("rollouts", "rewards", "sequences", "train policy", "record"):
            epoch.finish(stage, "k", {"version": made}, 0)
        Manifests(tmp_path / "lake").put_epoch(epoch)
    store.set_current("v0004")
    remove(tmp_path, "policy", 10, by="run r")
    assert store.versions() == ["v0000", "v0003", "v0004"]
    return settings_of(tmp_path, tasks={"train": str(tasks), "evaluate": str(tasks)}, models=str(tmp_path / "models"))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: evaluate.fn(s, policy_versions={"policy": "v0001"}), f"^the evaluation beside run r: .*{GONE}"),
        (lambda s: evaluate.fn(s, epoch=1), f"^the evaluation after epoch 0 of run r: .*{GONE}"),
        (lambda s: evaluate.fn(s, epoch=1, tasks="tasks.jsonl"), f"^the evaluation beside run r: .*{GONE}"),
        (lambda s: train_epoch.fn(s, 1, "train"), f"^epoch 1 of run r: .*{GONE}"),
        (lambda s: train_epoch.fn(s, 0, "record"), f"^epoch 0 of run r: .*{GONE}"),
        (lambda s: train_epoch.fn(s, 1), f"^epoch 1 of run r: .*{GONE}"),
        (lambda s: roll_out.fn(s, 1, "rollouts"), f"^the rollouts of epoch 1 of run r: .*{GONE}"),
        (lambda s: evaluate.fn(s, policy_versions={"policy": "v0042"}), r"no version 'v0042' in .*'v0004'"),
    ],
    ids=[
        "evaluate-version",
        "evaluate-epoch",
        "evaluate-epoch-beside",
        "from-train",
        "from-record",
        "changed",
        "roll-out",
        "never-there",
    ],
)
def test_a_flow_says_so_before_it_starts_or_forgets_anything(
    trained: Settings, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Settings], Any], message: str
) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("services were started")

    for module in (
        "lightning_flows.flows.evaluate",
        "lightning_flows.flows.train_epoch",
        "lightning_flows.flows.roll_out",
    ):
        monkeypatch.setattr(f"{module}.running", started)
    monkeypatch.setattr("lightning_flows.flows.run.begin", lambda *_: None)  # of other matters
    monkeypatch.setattr("lightning_flows.flows.evaluate.begin", lambda *_: None)
    monkeypatch.setattr("lightning_flows.flows.train_epoch.watch", lambda *_: None)
    before = Manifests(trained.home / "lake").epochs()
    with pytest.raises(StoreError, match=message):
        ask(trained)
    assert Manifests(trained.home / "lake").epochs() == before, "no stage was forgotten, no epoch opened"


def test_a_finetuning_from_a_removed_version_opens_no_epoch(trained: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base_model", "ingest_spans", "watch"):
        monkeypatch.setattr(finetune_flow, name, lambda *_: None)
    wanted = settings_of(
        trained.home, run="sft", policies=[{"algorithm": "sft"}], finetune={"runs": ["r"], "version": "v0001"}
    )
    with pytest.raises(StoreError, match=f"^the finetuning of run sft: .*{GONE}"):
        finetune_flow.finetune.fn(wanted)
    assert Manifests(trained.home / "lake").epochs("sft") == []


def test_what_a_run_needs_to_go_on_is_there(trained: Settings) -> None:
    assert Run(trained).versions(4) == {"policy": "v0004"}
    assert Run(trained).versions(3) == {"policy": "v0003"}, "its newest epoch can be trained again"


def test_a_policy_that_begins_with_a_removed_version_of_another_home_is_an_error_that_says_so(
    trained: Settings,
) -> None:
    with pytest.raises(ModelError, match=GONE):
        resolve_model(str(trained.home / "policies/policy/v0001"), trained.models, lambda _: None)
