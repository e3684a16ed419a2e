"""What lies in a version's folder is what was published, or is not served."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_core import digests
from lightning_core.policies.store import PolicyStore, StoreError
from lightning_core.policies.version_manifest import digest_files
from tests.policy_files import lineage, output, store_with_base, write_model


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return store_with_base(tmp_path)


@pytest.mark.parametrize("damage", ["changed", "missing", "extra", "half"])
def test_verify_names_the_file_that_is_not_what_was_published(store: PolicyStore, tmp_path: Path, damage: str) -> None:
    version = store.publish(output(tmp_path), lineage())
    weights = store.path(version) / "model.safetensors"
    if damage == "changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    elif damage == "half":
        os.truncate(weights, weights.stat().st_size // 2)
    else:
        (store.path(version) / "more.bin").write_bytes(b"")
    message = {"changed": "content", "missing": "missing", "half": "half written", "extra": "remove this file"}[damage]
    with pytest.raises(StoreError, match=rf"{'more.bin' if damage == 'extra' else 'model.safetensors'}.*{message}"):
        store.checked(version)


def test_a_file_is_hashed_once_until_it_changes(
    store: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**18))  # every file counts as old
    version = store.publish(output(tmp_path), lineage())
    hashed = []
    real = digests.blake3

    class Counting:
        AUTO = real.AUTO

        def __new__(cls, **options: Any) -> Any:
            hashed.append(options)
            return real(**options)

    monkeypatch.setattr(digests, "blake3", Counting)
    store.verify(version)
    assert hashed == []
    weights = store.path(version) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(1, 1))
    with pytest.raises(StoreError, match="content"):
        store.verify(version)
    assert len(hashed) == 1


def test_a_file_just_written_is_never_taken_as_hashed(
    store: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(digests, "_SETTLED_NS", 10**18)  # every file counts as new
    store.publish(output(tmp_path), lineage())
    inodes = {file.stat().st_ino for file in store.path("v0001").rglob("*") if file.is_file()}
    assert not inodes & {key[1] for key in digests._hashed}


@pytest.mark.parametrize(
    ("stamp_ns", "after_ms", "settled"),
    [(7, 10, False), (7, 100, True), (0, 100, False), (0, 2100, True)],
    ids=["just now", "some ticks ago", "by a clock of whole seconds", "seconds ago"],
)
def test_a_file_is_settled_when_a_change_of_it_could_not_go_unseen(
    monkeypatch: pytest.MonkeyPatch, stamp_ns: int, after_ms: int, settled: bool
) -> None:

    changed = 1_700_000_000 * 10**9 + stamp_ns
    facts = SimpleNamespace(st_dev=1, st_ino=1, st_size=7, st_ctime_ns=changed)
    monkeypatch.setattr(digests.time, "time_ns", lambda: changed + after_ms * 10**6)
    file: Any = SimpleNamespace(stat=lambda: facts)
    assert (digests.settled_key(file) is not None) == settled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "v0003"}, "it is the manifest of policy policy, v0003"),
        ({"policy": "other"}, "it is the manifest of policy other"),
        ({"parent": "v0001"}, "which is no earlier version"),
        ({"parent": "../v0000"}, "which is no earlier version"),
        ({"kind": "lora"}, "lists no adapter_config.json"),
        ({"files": {"../v0000/config.json": {"size": 1, "blake3": "x"}}}, "which is no file of a version"),
        ({"created_ns": "yesterday"}, "not a manifest"),
        ({"unknown": 1}, "not a manifest"),
    ],
)
def test_a_manifest_that_lies_is_found_before_serving(
    store: PolicyStore, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    version = store.publish(output(tmp_path), lineage(parent="v0000"))
    file = store.path(version) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(StoreError, match=rf"manifest\.json: .*{message}.*restore v0001"):
        store.checked(version)


def test_a_manifest_with_digests_of_weights_that_do_not_fit_is_found_too(store: PolicyStore, tmp_path: Path) -> None:
    """Whoever rewrites manifest and weights alike still cannot have another model served."""
    version = store.publish(output(tmp_path), lineage(parent="v0000"))
    other = write_model(tmp_path / "other", columns=3, hidden_size=2)
    (store.path(version) / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())

    lying = store.manifest(version).model_copy(update={"files": digest_files(store.path(version))})
    (store.path(version) / "manifest.json").write_text(lying.model_dump_json())
    with pytest.raises(StoreError, match=r"does not fit: .*embed\.weight has shape"):
        store.checked(version)


def test_a_damaged_parent_does_not_condemn_its_child(store: PolicyStore, tmp_path: Path) -> None:
    store.publish(output(tmp_path, "a"), lineage(1, parent="v0000"))
    child = store.publish(output(tmp_path, "b", 2.0), lineage(2, parent="v0001"))
    (store.path("v0001") / "model.safetensors").unlink()
    store.checked(child)
