"""Versions on disk: complete or absent, one winner, never replaced."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from safetensors.numpy import save_file

from lightning_core.policies import store as store_module
from lightning_core.policies.store import Evaluation, PolicyStore, PublishConflict, StoreError
from lightning_core.policies.tensor_files import parameters
from tests.policy_files import lineage, output, store_with_base, write_adapter, write_model


def evaluation(right: float, held_out: str = "tasks", epoch: int = 1) -> Evaluation:
    return Evaluation(run="r", epoch=epoch, tasks=10, right=right, reward=right, held_out=held_out)


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return store_with_base(tmp_path)


def test_a_new_policy_has_no_versions(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path, "policy")
    assert (store.versions(), store.latest(), store.current(), store.best(), store.pinned()) == (
        [],
        None,
        None,
        None,
        [],
    )


def test_the_base_costs_no_disk_and_can_be_published_again(store: PolicyStore, tmp_path: Path) -> None:
    linked = store.path("v0000") / "model.safetensors"
    assert linked.stat().st_ino == (tmp_path / "models/base/model.safetensors").stat().st_ino
    assert store.publish_base(tmp_path / "models/base", "base") == "v0000"
    assert store.versions() == ["v0000"]


def test_the_weights_of_a_base_are_those_that_its_index_names(tmp_path: Path) -> None:
    base = write_model(tmp_path / "models/base")
    # As Mistral publishes its models: the same weights once more, under its own names.
    save_file({"layers.0.attention.wq.weight": np.ones((4, 2), "float32")}, base / "consolidated.safetensors")
    assert parameters(base) == 10
    index = {"weight_map": {"embed.weight": "model-00001-of-00002.safetensors", "norm.weight": "model.safetensors"}}
    save_file({"embed.weight": np.zeros((4, 2), "float32")}, base / "model-00001-of-00002.safetensors")
    save_file({"norm.weight": np.ones(2, "float32")}, base / "model.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert parameters(base) == 10
    store = store_with_base(tmp_path)
    assert store.publish(output(tmp_path), lineage()) == "v0001"


def test_the_base_is_copied_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError("links are not for this file system")

    monkeypatch.setattr(os, "link", refuse)
    store = store_with_base(tmp_path)
    copied, source = store.path("v0000") / "model.safetensors", tmp_path / "models/base/model.safetensors"
    assert copied.read_bytes() == source.read_bytes()
    assert copied.stat().st_ino != source.stat().st_ino


def test_another_base_model_is_refused_with_the_remedy(store: PolicyStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"descend from base \(full\).*another name"):
        store.publish_base(tmp_path / "models/base", "other")


def test_the_base_of_an_adapter_is_a_manifest_alone(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path, "adapter")
    store.publish_base(tmp_path / "unused", "base", "lora")
    assert store.manifest("v0000").files == {}
    assert [entry.name for entry in store.path("v0000").iterdir()] == ["manifest.json"]
    store.verify("v0000")


def test_publishing_moves_the_folder_and_keeps_the_lineage(store: PolicyStore, tmp_path: Path) -> None:
    folder = output(tmp_path)
    message: dict[str, Any] = {
        "metrics": {"loss": 0.5},
        "settings_digest": "s",
        "sequences": "derived/r/1/x",
        "sequences_digest": "q",
    }
    version = store.publish(folder, lineage(parent="v0000", **message))
    manifest = store.manifest(version)
    assert version == "v0001" == store.latest()
    assert not folder.exists()
    assert sorted(manifest.files) == [
        "config.json", "model.safetensors", "sub/notes.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (manifest.parent, manifest.run, manifest.epoch) == ("v0000", "r", 1)
    assert {name: getattr(manifest, name) for name in message} == message
    assert manifest.size == sum(f.stat().st_size for f in store.path(version).rglob("*.*") if f.name != "manifest.json")
    assert store.checked(version) == store.path(version)


def test_a_resumed_epoch_gets_the_version_it_published(store: PolicyStore, tmp_path: Path) -> None:
    first = store.publish(output(tmp_path, "a"), lineage())
    before = store.manifest(first)
    again = output(tmp_path, "b")
    assert store.publish(again, lineage()) == first
    assert store.versions() == ["v0000", "v0001"]
    assert store.manifest(first) == before
    assert again.exists()


def test_what_a_power_cut_left_of_a_version_is_replaced_where_it_is_trained_again(
    store: PolicyStore, tmp_path: Path
) -> None:
    first = store.publish(output(tmp_path, "a"), lineage(), synced=False)
    (store.path(first) / "model.safetensors").write_bytes(b"")
    assert store.publish(output(tmp_path, "b"), lineage()) == first
    store.verify(first)
    assert not [*store.folder.glob(".damaged-*")]
    store.sync(first)


def test_a_resumed_epoch_with_other_weights_becomes_a_version_of_its_own(store: PolicyStore, tmp_path: Path) -> None:
    store.publish(output(tmp_path, "a"), lineage())
    assert store.publish(output(tmp_path, "b", 2.0), lineage()) == "v0002"
    assert store.published("r", 1) == ["v0001", "v0002"]


def test_of_two_publishers_one_wins_and_the_other_can_publish_again(
    store: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = output(tmp_path, "mine", 1.0), output(tmp_path, "theirs", 2.0)
    weights = (theirs / "model.safetensors").read_bytes()
    files_before = sorted(p.name for p in mine.rglob("*"))
    PolicyStore(tmp_path, "policy").publish(theirs, lineage(epoch=1))
    with monkeypatch.context() as patched:
        patched.setattr(store, "latest", lambda: "v0000")  # what this publisher saw before the other's rename
        with pytest.raises(PublishConflict, match=r"v0001 was published by another process"):
            store.publish(mine, lineage(epoch=2))
    assert (store.path("v0001") / "model.safetensors").read_bytes() == weights
    assert sorted(p.name for p in mine.rglob("*")) == files_before
    assert store.publish(mine, lineage(epoch=2)) == "v0002"


def test_many_publishers_at_once_lose_nothing(store: PolicyStore, tmp_path: Path) -> None:
    folders = [output(tmp_path, str(i), float(i)) for i in range(8)]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    published: list[str] = []
    lost: list[int] = []

    def publish(i: int) -> None:
        while True:
            try:
                published.append(store.publish(folders[i], lineage(epoch=i)))
                return
            except PublishConflict:
                lost.append(i)

    threads = [threading.Thread(target=publish, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(published) == [f"v{i:04d}" for i in range(1, 9)]
    for version in published:
        store.verify(version)
        epoch = store.manifest(version).epoch
        assert epoch is not None
        assert (store.path(version) / "model.safetensors").read_bytes() == weights[epoch]


def test_a_publisher_killed_at_any_moment_leaves_a_whole_version_or_none(tmp_path: Path) -> None:
    seen = set()
    for step in range(1, 12):
        home = tmp_path / str(step)
        store, folder = store_with_base(home), output(home)
        child = os.fork()
        if child == 0:
            moments = iter(range(1, step))

            def fsync(path: Path, left: Iterator[int] = moments) -> None:
                if next(left, None) is None:
                    os._exit(9)

            store_module.fsync = fsync
            store.publish(folder, lineage())
            os._exit(0)
        assert os.waitpid(child, 0)[0] == child
        for version in store.versions():
            store.verify(version)
        seen.add(store.latest())
        assert store.publish(output(home, "again"), lineage()) == "v0001"
    assert seen == {"v0000", "v0001"}


@pytest.mark.parametrize("full_at", ["model.safetensors", "manifest.json", "training/out"])
def test_a_full_disk_leaves_no_half_version_and_says_so(
    store: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    folder, real = output(tmp_path), store_module.fsync

    def full(path: Path) -> None:
        if str(path).endswith(full_at):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(store_module, "fsync", full)
    with pytest.raises(StoreError, match=r"v0001 was not published, the disk of .* is full"):
        store.publish(folder, lineage())
    assert store.versions() == ["v0000"]
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    assert store.publish(folder, lineage()) == "v0001"


def test_a_disk_that_fills_up_while_the_base_is_copied_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(store_module.shutil, "copyfile", full)
    with pytest.raises(StoreError, match="is full"):
        store_with_base(tmp_path)
    assert list((tmp_path / "policies/policy").iterdir()) == []


@pytest.mark.parametrize(
    ("evil", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), r"holds no \*\.safetensors"),
        (lambda f: os.truncate(f / "model.safetensors", 100), r"model\.safetensors .*(header|written to the end)"),
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read as JSON"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json: another tokenizer"),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: missing, so the tokenizer is another"),
        (lambda f: (f / "chat_template.jinja").write_text("x"), r"chat_template\.jinja: its parent has no such file"),
    ],
)
def test_weights_that_do_not_fit_are_not_published_and_the_file_is_named(
    store: PolicyStore, tmp_path: Path, evil: Callable[[Path], object], message: str
) -> None:
    folder = output(tmp_path)
    evil(folder)
    with pytest.raises(StoreError, match=message):
        store.publish(folder, lineage(parent="v0000"))
    assert store.versions() == ["v0000"]
    assert folder.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": 3, "hidden_size": 2}, r"embed\.weight has shape \[4, 3\] where the model has \[4, 2\]"),
        ({"dtype": "float16"}, r"embed\.weight is F16, its parent's F32"),
        ({"vocab_size": 5}, r"`vocab_size` is 5, its parent's 4"),
    ],
)
def test_another_shape_dtype_or_config_is_not_published(
    store: PolicyStore, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        store.publish(output(tmp_path, **changes), lineage())
    assert store.versions() == ["v0000"]


def test_float32_may_follow_a_base_of_another_dtype(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path, "policy")
    store.publish_base(write_model(tmp_path / "base", dtype="float16"), "base")
    assert store.publish(output(tmp_path), lineage(parent="v0000")) == "v0001"


def test_an_adapter_has_to_fit_the_one_it_came_from(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path, "adapter")
    store.publish_base(tmp_path / "unused", "base", "lora")
    first = store.publish(write_adapter(tmp_path / "a"), lineage(kind="lora", parent="v0000"))
    with pytest.raises(StoreError, match=r"adapter_config\.json: `r` is 4, its parent's 2"):
        store.publish(write_adapter(tmp_path / "b", rank=4), lineage(2, kind="lora", parent=first))
    assert store.publish(write_adapter(tmp_path / "c", 1.0), lineage(2, kind="lora", parent=first)) == "v0002"
    with pytest.raises(StoreError, match="of kind `full`, v0002 of kind `lora`"):
        store.publish(write_model(tmp_path / "d"), lineage(3, parent="v0002"))


def test_a_folder_without_a_manifest_is_no_version(store: PolicyStore) -> None:
    (store.folder / "v0001").mkdir()
    assert store.versions() == ["v0000"]
    with pytest.raises(StoreError, match="no version 'v0001'"):
        store.path("v0001")


def test_versions_sort_by_number(store: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in ((9999, "v9999"), (10000, "v10000")):
        monkeypatch.setattr(store, "latest", lambda number=number: f"v{number - 1:04d}")
        assert store.publish(output(tmp_path, name), lineage(number)) == name
    assert store.versions() == ["v0000", "v9999", "v10000"]


def test_current_is_what_was_set_and_only_published_versions_can_be(store: PolicyStore) -> None:
    store.set_current("v0000")
    assert store.current() == "v0000"
    with pytest.raises(StoreError, match="no version 'v0007'"):
        store.set_current("v0007")
    assert store.current() == "v0000"
    assert not list(store.folder.glob(".current*"))


@pytest.mark.parametrize("content", [b"", b"v0\x00", b"../v0000\n", b"v0000 v0001"])
def test_a_pointer_that_names_no_version_is_an_error_that_names_the_file(store: PolicyStore, content: bytes) -> None:
    (store.folder / "current").write_bytes(content)
    with pytest.raises(StoreError, match=r"policies/policy/current: .* is no version; write one of \['v0000'\]"):
        store.current()


def test_best_is_the_highest_share_right_and_of_equals_the_older(store: PolicyStore, tmp_path: Path) -> None:
    for number, right in enumerate((0.2, 0.5, 0.5, 0.4)):
        version = "v0000" if number == 0 else store.publish(output(tmp_path, str(number), number), lineage(number))
        store.evaluated(version, evaluation(right, epoch=number))
    assert store.best() == "v0001"
    assert store.manifest("v0002").evaluation == evaluation(0.5, epoch=2)
    assert store.evaluated("v0001", evaluation(0.1)) == "v0002" == store.best()
    store.verify("v0001")


def test_an_evaluation_on_other_tasks_is_not_compared(store: PolicyStore, tmp_path: Path) -> None:
    store.evaluated("v0000", evaluation(1.0, held_out="easy"))
    version = store.publish(output(tmp_path), lineage())
    assert store.evaluated(version, evaluation(0.1, held_out="hard")) == version == store.best()


def test_writers_of_small_files_wait_for_each_other(store: PolicyStore, tmp_path: Path) -> None:
    versions = ["v0000"] + [store.publish(output(tmp_path, str(i), i), lineage(i)) for i in range(1, 9)]

    def write(version: str) -> None:
        PolicyStore(tmp_path, "policy").pin(version)
        PolicyStore(tmp_path, "policy").evaluated(version, evaluation(int(version[1:]) / 10))

    threads = [threading.Thread(target=write, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.pinned() == versions
    assert store.best() == "v0008"


def test_a_pin_can_be_taken_away_and_names_a_version(store: PolicyStore) -> None:
    store.pin("v0000")
    store.pin("v0000")
    assert store.pinned() == ["v0000"]
    store.pin("v0000", pinned=False)
    assert store.pinned() == []
    with pytest.raises(StoreError, match="no version 'v0009'"):
        store.pin("v0009")


def test_nothing_is_published_before_the_base_or_from_an_empty_folder(store: PolicyStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="publish its base"):
        PolicyStore(tmp_path, "new").publish(output(tmp_path), lineage())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StoreError, match="nothing to publish"):
        store.publish(empty, lineage())


def test_an_unknown_parent_is_refused(store: PolicyStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no version 'v0042'"):
        store.publish(output(tmp_path), lineage(parent="v0042"))
