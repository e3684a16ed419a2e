"""What nothing needs goes, whole; what anything needs stays."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import pytest

from lightning_core.lake.manifest import EpochManifest, LakeError, Manifests, Mode
from lightning_core.policies import prune as policies_prune
from lightning_core.policies import store as store_module
from lightning_core.policies.prune import prune
from lightning_core.policies.store import Evaluation, Lineage, PolicyStore, StoreError
from lightning_core.policies.vllm import VllmState
from tests.policy_files import store_with_base, write_model


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PolicyStore:
    """v0000 to v0008, each the child of the one before."""
    monkeypatch.setattr(store_module, "fsync", lambda _: None)  # publishing is tested elsewhere
    store = store_with_base(tmp_path)
    for number in range(1, 9):
        folder = write_model(tmp_path / "training" / str(number), float(number))
        lineage = Lineage(run="r", epoch=number - 1, base_model="base", parent=f"v{number - 1:04d}")
        assert store.publish(folder, lineage) == f"v{number:04d}"
    return store


def test_by_default_base_current_its_parent_best_pinned_and_newest_stay(store: PolicyStore, tmp_path: Path) -> None:
    store.set_current("v0005")
    store.pin("v0002")
    store.evaluated("v0003", Evaluation(run="r", epoch=3, tasks=1, right=1, reward=1, held_out="x"))
    size = store.manifest("v0001").size + (store.path("v0001") / "manifest.json").stat().st_size
    done = prune(tmp_path, "policy")
    assert done.kept == {
        "v0000": ["base"],
        "v0002": ["pinned"],
        "v0003": ["best", "best of run r"],
        "v0004": ["parent of current"],
        "v0005": ["current"],
        "v0008": ["newest"],
    }
    assert list(done.gone) == ["v0001", "v0006", "v0007"]
    assert done.gone["v0001"] == size
    assert store.versions() == list(done.kept)
    for version in store.versions():
        store.verify(version)
    assert prune(tmp_path, "policy").gone == {}


def test_a_dry_run_says_the_same_and_removes_nothing(store: PolicyStore, tmp_path: Path) -> None:
    before = sorted(p for p in store.folder.rglob("*") if p.name != ".lock")
    planned = prune(tmp_path, "policy", dry_run=True)
    assert sorted(p for p in store.folder.rglob("*") if p.name != ".lock") == before
    assert prune(tmp_path, "policy") == planned
    assert planned.gone


def test_every_kth_stays(store: PolicyStore, tmp_path: Path) -> None:
    prune(tmp_path, "policy", keep_every=3)
    assert store.versions() == ["v0000", "v0003", "v0006", "v0008"]


def test_what_a_retry_begins_with_stays_for_every_run(store: PolicyStore, tmp_path: Path) -> None:
    manifests = Manifests(tmp_path / "lake")

    def epoch(
        run: str, number: int, version: str, trained: str | None = None, finished: bool = True, mode: Mode = "train"
    ) -> None:
        made = EpochManifest(run=run, epoch=number, mode=mode, opened_offset=0, versions={"policy": version})
        if trained:
            made.finish("train policy", "k", {"version": trained}, 0)
        if finished:
            made.finish("record", "k", {}, 0)
        manifests.put_epoch(made)

    epoch("a", 0, "v0000", "v0001")
    epoch("a", 1, "v0001", "v0002")  # its newest: a retry begins with v0001
    epoch("b", 0, "v0004", finished=False)  # killed while it trained
    epoch("b", 1, "v0000")
    epoch("c", 0, "v0006", finished=False, mode="evaluate")
    epoch("c", 1, "v0007", mode="evaluate")
    beside = EpochManifest(run="c-on-1", epoch=0, mode="evaluate", opened_offset=0, versions={"policy": "v0005"})
    beside.finish("sequences", "k", {}, 0)  # it is never recorded
    manifests.put_epoch(beside)
    done = prune(tmp_path, "policy")
    assert done.kept == {
        "v0000": ["base", "run b"],
        "v0001": ["run a"],
        "v0002": ["run a"],
        "v0004": ["run b"],
        "v0006": ["run c"],
        "v0008": ["newest"],
    }


def test_the_best_of_each_run_stays_for_its_alarm(store: PolicyStore, tmp_path: Path) -> None:
    for version, run, right in (("v0002", "a", 0.5), ("v0003", "a", 0.4), ("v0005", "b", 0.9)):
        store.evaluated(version, Evaluation(run=run, epoch=1, tasks=1, right=right, reward=right, held_out="x"))
    assert prune(tmp_path, "policy").kept == {
        "v0000": ["base"],
        "v0002": ["best of run a"],
        "v0005": ["best", "best of run b"],
        "v0008": ["newest"],
    }


def test_what_a_run_published_and_had_no_time_to_note_stays(store: PolicyStore, tmp_path: Path) -> None:
    Manifests(tmp_path / "lake").put_epoch(
        EpochManifest(run="r", epoch=3, opened_offset=0, versions={"policy": "v0003"})
    )
    assert prune(tmp_path, "policy").kept["v0004"] == ["run r"]


def test_what_the_newest_finished_epoch_began_with_stays_while_the_next_is_open(
    store: PolicyStore, tmp_path: Path
) -> None:
    manifests = Manifests(tmp_path / "lake")
    done = EpochManifest(run="a", epoch=1, opened_offset=0, versions={"policy": "v0003"})
    done.finish("record", "k", {}, 0)
    manifests.put_epoch(done)
    manifests.put_epoch(EpochManifest(run="a", epoch=2, opened_offset=0, versions={"policy": "v0004"}))
    assert prune(tmp_path, "policy").kept["v0003"] == ["run a"]


@pytest.mark.parametrize("record", ["vllm.json", "vllm-1.json"])  # the second alone: a kill amid stopping both
def test_what_a_vllm_holds_stays_since_it_is_started_again_with_it(
    record: str, store: PolicyStore, tmp_path: Path
) -> None:
    def held(version: str) -> str:
        return str(store.path(version))

    state = VllmState(
        pid=1, started=0.0, socket="s", model="m", served_name="policy", version="v0000", weights=str(tmp_path / "base"),
        lora_rank=16, log="l", command=[], start_timeout_s=1.0,
        adapters={"policy-v0002": held("v0002"), "policy-v0005": held("v0005"), "other-v0003": "/elsewhere/v0003"},
    )  # fmt: skip
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / record).write_text(json.dumps(asdict(state)))
    (tmp_path / "services" / "vllm-1-keeper.json").write_text("{}")  # of the process that looks after it
    assert prune(tmp_path, "policy").kept == {
        "v0000": ["base"],
        "v0002": ["loaded in vLLM"],
        "v0005": ["loaded in vLLM"],
        "v0008": ["newest"],
    }


def test_a_number_is_never_given_twice(store: PolicyStore, tmp_path: Path) -> None:
    store.set_current("v0001")
    prune(tmp_path, "policy")
    assert store.publish(write_model(tmp_path / "next", 9.0), Lineage(base_model="base", parent="v0001")) == "v0009"


def test_a_version_whose_parent_was_removed_can_be_served_and_trained_from(store: PolicyStore, tmp_path: Path) -> None:
    prune(tmp_path, "policy")
    assert store.versions() == ["v0000", "v0008"]
    assert store.checked("v0008")


@pytest.mark.parametrize("unreadable", ["current", "best"])
def test_nothing_goes_while_it_is_unknown_what_is_needed(store: PolicyStore, tmp_path: Path, unreadable: str) -> None:
    (store.folder / unreadable).write_text("?")
    with pytest.raises(StoreError, match=unreadable):
        prune(tmp_path, "policy")
    assert len(store.versions()) == 9


def test_nor_while_an_epoch_cannot_be_read(store: PolicyStore, tmp_path: Path) -> None:
    (tmp_path / "lake/manifests/r").mkdir(parents=True)
    (tmp_path / "lake/manifests/r/0000.json").write_text("{")
    with pytest.raises(LakeError, match=r"0000\.json"):
        prune(tmp_path, "policy")
    assert len(store.versions()) == 9


def test_a_collection_that_is_killed_leaves_whole_versions_and_the_next_one_cleans_up(
    store: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(policies_prune.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, "policy")
    assert len(store.versions()) == 8
    for version in store.versions():
        store.verify(version)
    half_gone = list(store.folder.glob(".gone-*"))
    assert len(half_gone) == 1
    assert prune(tmp_path, "policy").left_behind == 0  # it may be another process at work
    os.utime(half_gone[0], (time.time() - 7200,) * 2)
    assert prune(tmp_path, "policy").left_behind == 1
    assert not list(store.folder.glob(".gone-*"))


def test_a_damaged_version_that_was_about_to_be_replaced_by_a_process_that_was_killed_goes(
    store: PolicyStore, tmp_path: Path
) -> None:
    folder = write_model(store.folder / ".damaged-1a2b3c4d")
    os.utime(folder, (time.time() - 7200,) * 2)
    assert prune(tmp_path, "policy").left_behind == 1
    assert not folder.exists()


def test_a_damaged_version_nothing_needs_goes_too(store: PolicyStore, tmp_path: Path) -> None:
    (store.path("v0003") / "manifest.json").write_text("{")
    assert "v0003" in prune(tmp_path, "policy").gone


def test_an_unknown_policy_is_an_error_that_names_those_there_are(store: PolicyStore, tmp_path: Path) -> None:
    shutil.copytree(store.folder, tmp_path / "policies/other")
    with pytest.raises(StoreError, match=r"no policy 'polcy' in .*; there are \['other', 'policy'\]"):
        prune(tmp_path, "polcy")
