"""Overlap of an epoch's training with the next one's rollouts: what is opened, served, kept and refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_core.config import Settings, SettingsError
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.epoch.plan import Task, plan_training
from lightning_core.epoch.resume import starts_from
from lightning_core.epoch.stage_keys import rollouts_key
from lightning_core.epoch.stages import redo_from
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError, SpanManifest
from lightning_core.policies.prune import _begun_with
from lightning_core.policies.store import PolicyStore
from lightning_core.settings_file import load_settings
from lightning_flows.tasks import overlap
from tests.unit.test_stage_keys import BASE

V0, V1, V2 = ({"policy": f"v000{n}"} for n in range(3))
CORRECTED = {"importance_correction": "token_truncate"}
TASKS = [Task("a", {"id": "a"}), Task("b", {"id": "b"})]


def settings_of(home: Path, **changes: Any) -> Settings:
    tasks = home / "tasks.jsonl"
    tasks.write_text("\n".join(json.dumps(task.content) for task in TASKS))
    overlapped = {"home": str(home), "async_level": 1, "epochs": 3, "policies": [{"training": CORRECTED}]}
    return Settings.model_validate(BASE | {"tasks": {"train": str(tasks)}} | overlapped | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("policies: [{}]", r"one step an epoch.*`training.importance_correction`"),
        (
            "policies: [{max_version_lag: 0, training: {importance_correction: token_mask}}]",
            r"`max_version_lag: 0`.*make that 1 or more",
        ),
        (
            "{policies: [{training: {importance_correction: token_mask}}], vllm: {colocated: true}}",
            r"`vllm.colocated` puts vLLM to sleep.*`colocated: false`",
        ),
        ("async_level: 2", r"`async_level`: Input should be 0 or 1 \(got 2\)"),
    ],
)
def test_overlap_that_cannot_be_or_would_not_be_corrected_is_an_error_with_a_remedy(
    tmp_path: Path, changes: str, message: str
) -> None:
    file = tmp_path / "settings.yaml"
    settings = {"agent": {"command": "true"}, "tasks": {"train": "t.jsonl"}, "async_level": 1}
    file.write_text(yaml.safe_dump(settings | yaml.safe_load(changes)))
    with pytest.raises(SettingsError, match=message):
        load_settings(file)


@pytest.mark.parametrize(
    "policy",
    [
        {"training": CORRECTED},
        {"training": CORRECTED, "max_version_lag": 1},
        {"training": {"steps_per_epoch": 2}},  # the ratio is to the sampling logprobs then
        {"algorithm": "sft"},  # examples, whoever sampled them
    ],
)
def test_overlap_that_is_corrected_for_is_taken(tmp_path: Path, policy: dict[str, Any]) -> None:
    assert settings_of(tmp_path, policies=[policy]).async_level == 1


def test_without_the_setting_nothing_overlaps_and_stages_have_the_keys_they_had(tmp_path: Path) -> None:
    settings = Settings.model_validate(BASE)
    assert settings.async_level == 0
    epoch = EpochManifest(run="r", epoch=0, versions=V0, opened_offset=0)
    assert epoch.sampled_from == V0
    planned = plan_training(Run(settings), TASKS, 0)
    assert starts_from(Epoch(settings, epoch), planned) == V0


def test_an_epoch_that_is_rolled_out_ahead_keeps_its_rollouts_when_its_versions_are_known(tmp_path: Path) -> None:
    lake, settings = Lake(tmp_path), settings_of(tmp_path)
    ahead = lake.open_ahead("r", 1, V0)
    assert ahead is not None and (ahead.versions, ahead.sampled_from) == ({}, V0)
    planned = plan_training(Run(settings), TASKS, 1)
    key = rollouts_key(Epoch(settings, ahead), planned)
    ahead.finish("rollouts", key, {}, 0.0)
    lake.manifests.put_epoch(ahead)

    begun = lake.open_epoch("r", 1, "train", V1)
    assert (begun.versions, begun.sampled_from) == (V1, V0)
    assert rollouts_key(Epoch(settings, begun), planned) == key
    assert starts_from(Epoch(settings, begun), planned) == V1, "no swap back: there is nothing left to sample"
    assert starts_from(Epoch(settings_of(tmp_path, seed=5), begun), plan_training(Run(settings), TASKS, 2)) == V0


def test_rollouts_that_begin_while_their_version_is_written_are_those_of_an_epoch_that_waited(tmp_path: Path) -> None:
    lake, settings = Lake(tmp_path), settings_of(tmp_path, async_level=0)
    planned = plan_training(Run(settings), TASKS, 1)
    waited = EpochManifest(run="r", epoch=1, versions=V1, opened_offset=0)
    ahead = lake.open_ahead("r", 1, V1)
    assert ahead is not None
    key = rollouts_key(Epoch(settings, ahead), planned)
    begun = lake.open_epoch("r", 1, "train", V1)
    assert key == rollouts_key(Epoch(settings, begun), planned) == rollouts_key(Epoch(settings, waited), planned)
    assert begun.sampled_from == begun.versions == V1


def test_a_resumed_epoch_finds_what_it_rolled_out_ahead_and_leaves_alone_what_was_begun_after_it(
    tmp_path: Path,
) -> None:
    lake = Lake(tmp_path)
    first = lake.open_ahead("r", 1, V0)
    assert first is not None
    lake.manifests.put_spans(SpanManifest(decoded_offset=70))
    again = lake.open_ahead("r", 1, V0)
    assert again is not None and again.opened_offset == first.opened_offset, "its spans so far stay inside"
    lake.open_epoch("r", 1, "train", V1)
    assert lake.open_ahead("r", 1, V0) is None


def test_an_epoch_before_that_came_to_other_versions_makes_other_rollouts(tmp_path: Path) -> None:
    lake, settings = Lake(tmp_path), settings_of(tmp_path)
    planned = plan_training(Run(settings), TASKS, 1)
    keys = []
    for versions in (V0, V1):
        ahead = lake.open_ahead("r", 1, versions)
        assert ahead is not None
        keys.append(rollouts_key(Epoch(settings, ahead), planned))
    assert keys[0] != keys[1]
    begun = lake.open_epoch("r", 1, "train", V2)
    begun.finish("rollouts", keys[1], {}, 0.0)
    lake.manifests.put_epoch(begun)
    with pytest.raises(LakeError, match="an earlier epoch was trained again"):
        lake.open_epoch("r", 1, "train", V0)


def test_rollouts_that_are_asked_for_again_are_sampled_from_what_the_epoch_trains(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.open_ahead("r", 1, V0)
    begun = lake.open_epoch("r", 1, "train", V1)
    redo_from(Epoch(settings_of(tmp_path), begun), "sequences", "one")
    assert begun.sampled_from == V0
    redo_from(Epoch(settings_of(tmp_path), begun), "rollouts", "two")
    assert begun.sampled_from == V1


def test_a_version_that_rollouts_ahead_are_sampled_from_is_not_collected(tmp_path: Path) -> None:
    epoch = EpochManifest(run="r", epoch=1, versions=V1, sampled=V0, opened_offset=0)
    assert {version for _, version in _begun_with("policy", [epoch])} == {"v0000", "v0001", None}


class Side:
    """The next epoch's rollouts as a test has them: they wait for `go`, or to be interrupted."""

    def __init__(self, fails: bool = False) -> None:
        self.go, self.began, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.fails, self.epochs = fails, list[int]()

    def roll_out(self, epoch: Epoch, planned: list[Any]) -> dict[str, Any]:
        self.epochs.append(epoch.number)
        assert all(r.rollout_id.startswith(f"r.{epoch.number:04d}.") for r in planned)
        self.began.set()
        assert self.go.wait(10)
        self.ended.set()
        if self.fails:
            raise RuntimeError("no vLLM")
        return {}


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Side, list[Any]]]:
    """Train beside the next rollouts; returns those and what was deployed."""
    deployed: list[Any] = []

    def run(body: Callable[[Side], None], side: Side | None = None, number: int = 0, served: str = "v0000") -> Any:
        side = side or Side()
        monkeypatch.setattr(overlap, "roll_out", side.roll_out)
        monkeypatch.setattr(overlap, "close_runners", side.go.set)
        monkeypatch.setattr(overlap, "deploy", lambda *a: deployed.append(a[2]))
        monkeypatch.setattr(PolicyStore, "current", lambda self: served)
        epoch = EpochManifest(run="r", epoch=number, versions=V0, opened_offset=0)
        with overlap.rolling_out_next(Epoch(settings_of(tmp_path), epoch), None, V0):  # type: ignore[arg-type]
            body(side)
        return side, deployed

    return run


def test_rollouts_of_the_next_epoch_run_while_training_does_and_both_are_waited_for(train: Any) -> None:
    def training(side: Side) -> None:
        assert side.began.wait(10), "at the same time"
        threading.Timer(0.1, side.go.set).start()

    side, deployed = train(training)
    assert side.ended.is_set() and side.epochs == [1]
    assert deployed == [], "what is trained is served already"
    assert train(training, served="v0007")[1] == [V0], "rollouts of an older version had been finished first"


def test_the_last_epoch_of_a_run_has_none_after_it(train: Any) -> None:
    side, _ = train(lambda side: None, number=2)
    assert not side.began.is_set()


def test_where_training_fails_the_rollouts_beside_it_come_to_their_end(train: Any, caplog: Any) -> None:
    def training(side: Side) -> None:
        assert side.began.wait(10)
        threading.Timer(0.2, side.go.set).start()
        raise ValueError("out of memory")

    side = Side()
    with pytest.raises(ValueError, match="out of memory"):
        train(training, side)
    assert side.ended.is_set()
    assert "epoch 0 failed: out of memory; the rollouts of epoch 1" in caplog.text


def test_where_rollouts_fail_training_comes_to_its_end_and_the_failure_is_raised(train: Any, caplog: Any) -> None:
    side, trained = Side(fails=True), []

    def training(side: Side) -> None:
        side.go.set()
        assert side.ended.wait(10)
        trained.append("v0001")

    with pytest.raises(RuntimeError, match="no vLLM"):
        train(training, side)
    assert trained == ["v0001"]
    assert "the rollouts of epoch 1 failed: no vLLM" in caplog.text


def test_where_both_fail_training_is_raised_and_the_other_is_told(train: Any, caplog: Any) -> None:
    def training(side: Side) -> None:
        side.go.set()
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        train(training, Side(fails=True))
    assert "the rollouts of epoch 1 failed: no vLLM" in caplog.text


def test_an_interrupt_ends_the_rollouts_under_way(train: Any) -> None:
    def training(side: Side) -> None:
        assert side.began.wait(10)
        raise KeyboardInterrupt

    side = Side()
    with pytest.raises(KeyboardInterrupt):
        train(training, side)
    assert side.ended.is_set()
