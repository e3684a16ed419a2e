"""What an epoch cannot be trained on ends in an error that names place and remedy, before a step, and publishes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_core.config import Settings
from lightning_core.epoch import training
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.manifest import DerivedTable, EpochManifest
from lightning_core.policies.store import PolicyStore
from lightning_core.policies.version_manifest import Lineage, StoreError
from lightning_core.training.errors import TrainingError
from lightning_core.training.job import Job, Progress
from lightning_core.training.launch import Trained
from lightning_core.training.train_job import run_job
from tests.tiny_model import make_tiny_llama
from tests.training_data import make_sequence, one_thread, write_parquet

pytestmark = pytest.mark.slow  # some load a model


@pytest.fixture(autouse=True, scope="module")
def _trl() -> Iterator[None]:
    with one_thread():
        yield


def cut_off(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((file.read_bytes() if file.exists() else b"PK\x03\x04" * 50)[:100])


def half_written_base(home: Path) -> None:
    cut_off((home / "policies" / "policy" / "v0000" / "model.safetensors").resolve())


def half_written_state(home: Path) -> None:
    made_by_epoch_0(PolicyStore(home, "policy"), "r")
    folder = home / "training" / "r" / "policy" / "optimizer" / "epoch-0000"
    cut_off(folder / "optimizer.pt")
    (folder / "state.json").write_text(json.dumps({"epoch": 0, "step": 1, "version": "v0001"}))


def made_by_epoch_0(store: PolicyStore, run: str) -> None:
    output = shutil.copytree(store.path("v0000"), store.folder.parent / "output")
    (output / "manifest.json").unlink()
    store.publish(output, Lineage(base_model="base", run=run, epoch=0, parent="v0000"))


def another_model(home: Path) -> None:
    """The settings name another model than the run began with."""
    make_tiny_llama(home / "other", layers=1)


def nothing(home: Path) -> None:
    pass


def rows(length: int = 5, tokens: int = 3) -> list[Any]:
    return [make_sequence(f"r{i}", "g", [([1] * length, [tokens, 4])]) for i in range(2)]


CASES: dict[str, tuple[list[Any], dict[str, Any], Callable[[Path], None], str]] = {
    "all too long": (rows(300), {}, nothing, r"sequences.*all 2 sequences were left out.*`training.max_sequence_tokens`"),
    "beyond the vocabulary": (rows(tokens=300), {}, nothing, r"sequence 'r0' of rollout 'r0': token id 300 .*Train that one"),
    "NaN advantages": (rows(), {"advantages": [[float("nan")] * 7] * 2}, nothing, r"'r0': `advantages` is nan at token 5; look at its group's rewards"),
    "another tokenizer": (rows(), {"logprobs": [[0.0] * 7] * 2}, nothing, r"nats less likely .* another tokenizer, sampled them. Take the weights"),
    "half-written weights": (rows(), {}, half_written_base, r"v0000/model.safetensors: .*half written or replaced; restore v0000"),
    "half-written state": (rows(), {}, half_written_state, r"epoch-0000: cannot read the optimizer state.*remove the folder"),
    "another model's checkpoint": (rows(), {}, another_model, r"a checkpoint of another model: its `num_hidden_layers` is 2, the base model's 1.*go on from a version of this run"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["grpo", "sft"])
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_trained_on_is_told_before_a_step_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, name: str
) -> None:
    sequences, replaced, damage, message = CASES[case]
    lines: list[dict[str, Any]] = []

    monkeypatch.setattr(training, "train", in_this_process(lines))
    store, train = epoch_of(tmp_path, name, sequences, **replaced)
    damage(tmp_path)
    there = store.versions()
    with pytest.raises((TrainingError, StoreError), match=message):
        train()
    assert store.versions() == there
    assert not [line for line in lines if "step" in line]


def test_what_the_trainer_leaves_out_is_counted_with_the_version(tmp_path: Path) -> None:
    longer = make_sequence("long", "g", [([1] * 300, [3, 4])])
    _, train = epoch_of(tmp_path, "sft", [*rows(), longer], logprobs=[[-6.0] * 7] * 2 + [[-6.0] * 302])
    assert train()["metrics"]["left_out/too_long"] == 1


def test_an_epoch_without_sequences_keeps_its_version_and_says_why(tmp_path: Path) -> None:
    store, train = epoch_of(tmp_path, "grpo", [])
    output = train()
    assert output["version"] == "v0000" and store.versions() == ["v0000"]
    assert output["skipped"] == "nothing to train on in epoch 1: 2 calls no_spread; the version stays"
    assert not list(tmp_path.rglob("sequences-*.parquet"))


@pytest.mark.parametrize(("run", "state_of"), [("r", 0), ("another", None), (None, None)])
def test_the_optimizers_state_is_that_of_the_epoch_that_made_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str | None, state_of: int | None
) -> None:
    """A run may go on from an older version (`finetune.version`), or from one that another run made."""

    class Asked(Exception):
        pass

    def asked(job: Job, *_: Any, **__: Any) -> dict[str, Any]:
        assert job.made_in == state_of
        raise Asked

    monkeypatch.setattr(training, "train", asked)
    store, train = epoch_of(tmp_path, "grpo", rows())
    if run is not None:
        made_by_epoch_0(store, run)
    with pytest.raises(Asked):
        train()


def test_what_was_killed_between_training_and_publishing_goes_on_with_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]] = []

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> str:
        raise Killed

    monkeypatch.setattr(training, "train", in_this_process(lines))
    different = [make_sequence(f"r{i}", f"g{i}", [([1] * 5, [3, 4 + i])]) for i in range(2)]
    _, train = epoch_of(tmp_path, "grpo", different, {"steps_per_epoch": 2, "checkpoint_seconds": 0})
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(PolicyStore, "publish", killed)
        train()
    assert [line["step"] for line in lines if "step" in line] == [1, 2]
    lines.clear()
    assert train()["version"] == "v0001"
    assert [line["step"] for line in lines if "step" in line] == [2]
    assert not (tmp_path / "training" / "r" / "policy" / "optimizer" / "unfinished").exists()


def test_weights_go_on_with_the_optimizers_state_of_the_try_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]] = []
    jobs: list[Job] = []

    def train_here(job: Job, *_: Any, **__: Any) -> Trained:
        jobs.append(job)
        return in_this_process(lines)(job)

    monkeypatch.setattr(training, "train", train_here)
    _, train = epoch_of(tmp_path, "sft", rows(), logprobs=[[-6.0] * 7] * 2)
    train()
    train()
    assert not [line for line in lines if "warning" in line]
    # The first version's state is overwritten by now: that epoch was trained again, to other weights.
    train_here(jobs[1].model_copy(update={"sequences": tmp_path / "lake" / "sequences.parquet"}))
    (line,) = [line for line in lines if "warning" in line]
    assert "the optimizer state that epoch 1 left with these weights is not kept any more" in line["warning"]


def in_this_process(lines: list[dict[str, Any]]) -> Callable[..., Trained]:
    def train_here(job: Job, *_: Any, **__: Any) -> Trained:
        progress = Progress(job.progress)
        progress.write = lines.append  # type: ignore[method-assign, assignment]
        return Trained(run_job(job, progress))

    return train_here


def epoch_of(
    home: Path, name: str, sequences: list[Any], training_settings: dict[str, Any] | None = None, **replaced: Any
) -> tuple[PolicyStore, Callable[[], dict[str, Any]]]:
    """The store of a run whose epoch 1 has these sequences, and what trains on them."""
    base = make_tiny_llama(home / "base", positions=256)
    store = PolicyStore(home, "policy")
    store.publish_base(base, "base")
    (home / "lake").mkdir()
    write_parquet(sequences, home / "lake" / "sequences.parquet", **replaced)
    left_out = {"attempt_id": ["a", "a"], "span_id": ["1", "2"], "call_id": [1, 2]}
    pq.write_table(
        pa.table(left_out | {"policy": ["policy"] * 2, "reason": ["no_spread"] * 2}), home / "lake" / "out.parquet"
    )
    epoch = EpochManifest(
        run="r", epoch=1, opened_offset=0, versions={"policy": "v0000"},
        tables={
            "sequences": DerivedTable(path="sequences.parquet", rows=len(sequences), digest="d"),
            "exclusions": DerivedTable(path="out.parquet", rows=2, digest="d"),
        },
    )  # fmt: skip
    settings = Settings.model_validate(
        {
            "run": "r", "home": home, "agent": {"command": "true"}, "tasks": {"train": "x:y"}, "epochs": 2,
            "policies": [{"algorithm": name, "training": training_settings or {}}],
        }
    )  # fmt: skip
    handle, policy = Epoch(settings, epoch), settings.policies[0]

    def train() -> dict[str, Any]:
        other = home / "other"
        epoch.versions["policy"] = store.versions()[-1]
        made = training.train_version(handle, policy, other if other.exists() else base, print)
        made.write()
        return made.output

    return store, train
