"""Versions on disk: complete or absent, one winner, never replaced."""

import os
import threading

import pytest

from lightning_core.policies.store import Lineage, PolicyStore, PublishConflict, StoreError


def output(home, name="out", content=b"weights"):
    folder = home / "training" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "sub").mkdir()
    (folder / "sub/config.json").write_text("{}")
    return folder


def lineage(epoch=1, **more):
    return Lineage(run="r", epoch=epoch, base_model="base", **more)


@pytest.fixture
def store(tmp_path):
    base = tmp_path / "models/base"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_bytes(b"base weights")
    (base / "config.json").write_text("{}")
    store = PolicyStore(tmp_path, "policy")
    assert store.publish_base(base, "base") == "v0000"
    return store


def test_a_new_policy_has_no_versions(tmp_path):
    store = PolicyStore(tmp_path, "policy")
    assert (store.versions(), store.latest(), store.current()) == ([], None, None)


def test_the_base_costs_no_disk_and_can_be_published_again(store, tmp_path):
    linked = store.path("v0000") / "model.safetensors"
    assert linked.stat().st_ino == (tmp_path / "models/base/model.safetensors").stat().st_ino
    assert store.publish_base(tmp_path / "models/base", "base") == "v0000"
    assert store.versions() == ["v0000"]


def test_the_base_is_copied_where_links_are_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("links are not for this file system")

    monkeypatch.setattr(os, "link", refuse)
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"x")
    store = PolicyStore(tmp_path, "policy")
    store.publish_base(base, "base")
    assert (store.path("v0000") / "model.safetensors").read_bytes() == b"x"


def test_another_base_model_is_refused_with_the_remedy(store, tmp_path):
    with pytest.raises(StoreError, match=r"descend from base \(full\).*another name"):
        store.publish_base(tmp_path / "models/base", "other")


def test_the_base_of_an_adapter_is_a_manifest_alone(tmp_path):
    store = PolicyStore(tmp_path, "adapter")
    store.publish_base(tmp_path / "unused", "base", "lora")
    assert store.manifest("v0000").files == {}
    assert [entry.name for entry in store.path("v0000").iterdir()] == ["manifest.json"]


def test_publishing_moves_the_folder_and_keeps_the_lineage(store, tmp_path):
    folder = output(tmp_path)
    version = store.publish(
        folder, lineage(parent="v0000", metrics={"loss": 0.5}, settings_digest="s", sequences_digest="q")
    )
    manifest = store.manifest(version)
    assert version == "v0001" == store.latest()
    assert not folder.exists()
    assert sorted(manifest.files) == ["model.safetensors", "sub/config.json"]
    assert (manifest.parent, manifest.run, manifest.epoch, manifest.metrics) == ("v0000", "r", 1, {"loss": 0.5})
    assert manifest.files["model.safetensors"].size == 7
    store.verify(version)


def test_a_resumed_epoch_gets_the_version_it_published(store, tmp_path):
    first = store.publish(output(tmp_path, "a"), lineage())
    before = store.manifest(first)
    again = output(tmp_path, "b")
    assert store.publish(again, lineage()) == first
    assert store.versions() == ["v0000", "v0001"]
    assert store.manifest(first) == before
    assert again.exists()


def test_a_resumed_epoch_with_other_weights_becomes_a_version_of_its_own(store, tmp_path):
    store.publish(output(tmp_path, "a"), lineage())
    assert store.publish(output(tmp_path, "b", b"other"), lineage()) == "v0002"
    assert store.published("r", 1) == ["v0001", "v0002"]


def test_of_two_publishers_one_wins_and_the_other_can_publish_again(store, tmp_path):
    mine, theirs = output(tmp_path, "mine", b"mine"), output(tmp_path, "theirs", b"theirs")
    files_before = sorted(p.name for p in mine.rglob("*"))
    look = store.latest
    store.latest = lambda: "v0000"  # what this publisher saw before the other's rename
    PolicyStore(tmp_path, "policy").publish(theirs, lineage(epoch=1))
    with pytest.raises(PublishConflict, match=r"v0001 was published by another process"):
        store.publish(mine, lineage(epoch=2))
    assert (store.path("v0001") / "model.safetensors").read_bytes() == b"theirs"
    assert sorted(p.name for p in mine.rglob("*")) == files_before
    store.latest = look
    assert store.publish(mine, lineage(epoch=2)) == "v0002"


def test_many_publishers_at_once_lose_nothing(store, tmp_path):
    folders = [output(tmp_path, str(i), str(i).encode()) for i in range(8)]
    published, lost = [], []

    def publish(i):
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
        assert (store.path(version) / "model.safetensors").read_bytes() == str(store.manifest(version).epoch).encode()


@pytest.mark.parametrize("damage", ["changed", "missing", "extra"])
def test_verify_names_the_file_that_is_not_what_was_published(store, tmp_path, damage):
    version = store.publish(output(tmp_path), lineage())
    folder = store.path(version)
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"weightz")
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "more.bin").write_bytes(b"")
    with pytest.raises(StoreError, match=r"more\.bin" if damage == "extra" else r"model\.safetensors"):
        store.verify(version)


def test_a_folder_without_a_manifest_is_no_version(store):
    (store.folder / "v0001").mkdir()
    assert store.versions() == ["v0000"]
    with pytest.raises(StoreError, match="no version 'v0001'"):
        store.path("v0001")


def test_versions_sort_by_number(store, tmp_path):
    os.rename(store.path("v0000"), store.folder / "v9999")
    assert store.publish(output(tmp_path), lineage()) == "v10000"
    assert store.versions() == ["v9999", "v10000"]


def test_current_is_what_was_set_and_only_published_versions_can_be(store):
    store.set_current("v0000")
    assert store.current() == "v0000"
    with pytest.raises(StoreError, match="no version 'v0007'"):
        store.set_current("v0007")
    assert store.current() == "v0000"
    assert not list(store.folder.glob(".current-*"))


def test_nothing_is_published_before_the_base_or_from_an_empty_folder(store, tmp_path):
    with pytest.raises(StoreError, match="publish its base"):
        PolicyStore(tmp_path, "new").publish(output(tmp_path), lineage())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StoreError, match="nothing to publish"):
        store.publish(empty, lineage())


def test_an_unknown_parent_is_refused(store, tmp_path):
    with pytest.raises(StoreError, match="no version 'v0042'"):
        store.publish(output(tmp_path), lineage(parent="v0042"))
