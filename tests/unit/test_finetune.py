"""Which recorded rollouts a finetuning takes, and what its epoch is made of: SQL over a lake, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lightning_core.config import SettingsError
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.finetune import open_finetune, require_own_rollouts
from lightning_core.lake.catalog import connect
from lightning_core.lake.derived_tables import COLUMNS
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest, LakeError, Source
from tests.lake_maker import Attempt, derived, settings, table

pytestmark = pytest.mark.slow  # many lakes

REWARDS = {0: {"g": [0.2, 1.0], "h": [0.9, 0.8]}, 1: {"g": [1.0, 0.0]}}
DAY = 86_400.0
SFT = {"algorithm": "sft", "sft": {"best": 1, "min_reward": 0.5}}


def recorded(home: Path) -> Lake:
    """Two recorded epochs of run `run`, a day apart; the second has a rollout that was not planned, and evaluations."""
    rows = []
    for epoch, groups in REWARDS.items():
        for group, rewards in groups.items():
            for n, reward in enumerate(rewards):
                attempt = Attempt(f"{epoch}.{group}.{n}", group=f"{epoch}.{group}", start=100.0 + epoch * DAY)
                attempt.root(epoch=epoch)
                attempt.call([1, 2, 3], [10 + n, 20], sampling='{"temperature": 0.3}')
                attempt.reward(reward)
                rows += attempt.rows
    stray = Attempt("1.stray", group="1.g", start=100.0 + DAY)
    stray.root(epoch=1)
    stray.call([1], [2])
    stray.reward(5.0)
    held_out = Attempt("1.e", group="1.e", start=100.0 + DAY)
    held_out.root(epoch=1, mode="evaluate")
    held_out.call([1], [2])
    held_out.reward(5.0)
    lake, first = derived(home, [*rows, *stray.rows, *held_out.rows])
    for epoch, groups in REWARDS.items():
        planned = [f"{epoch}.{group}.{n}" for group, rewards in groups.items() for n in range(len(rewards))]
        lake.manifests.put_epoch(first.model_copy(update={"epoch": epoch, "planned": planned, "tables": {}}))
    return lake


def finetuned(lake: Lake, run: str = "sft", **changes: Any) -> EpochManifest:
    wanted = settings(lake.root.parent, **SFT, finetune={"runs": ["run"]} | changes).model_copy(update={"run": run})
    epoch = open_finetune(Run(wanted), 0, {"policy": "v0000"})
    derive(epoch, "key")
    return epoch.manifest


def taken(lake: Lake, epoch: EpochManifest) -> list[str]:
    return sorted(row["rollout_id"] for row in table(lake, epoch, "sequences"))


def test_the_best_rollouts_of_all_collected_epochs_are_the_sequences(tmp_path: Path) -> None:
    lake = recorded(tmp_path)
    epoch = finetuned(lake)
    assert taken(lake, epoch) == ["0.g.1", "0.h.0", "1.g.0"]
    sequence = table(lake, epoch, "sequences")[0]
    assert (sequence["run"], sequence["epoch"]) == ("sft", 0), "they belong to the finetuning"
    assert sequence["token_ids"] == [1, 2, 3, 11, 20] and sequence["loss_mask"] == [0, 0, 0, 1, 1]
    reasons = {row["rollout_id"]: row["reason"] for row in table(lake, epoch, "exclusions")}
    assert reasons == {"0.g.0": "below_min_reward", "0.h.1": "not_best_of_group", "1.g.1": "below_min_reward"}


def test_what_is_not_looked_at_is_counted_by_reason(tmp_path: Path) -> None:
    lake = recorded(tmp_path)
    epoch = finetuned(lake, until="1970-01-02T00:00:00Z")
    left_out = {
        row["rollout_id"]: row["left_out"] for row in table(lake, epoch, "finetune_rollouts") if row["left_out"]
    }
    assert left_out == {"1.g.0": "outside_window", "1.g.1": "outside_window", "1.stray": "not_planned"}
    assert taken(lake, epoch) == ["0.g.1", "0.h.0"]
    lake.rebuild_catalog()
    made = pq.read_schema(lake.path(epoch.tables["finetune_rollouts"])).names
    assert made == [name for name, _ in COLUMNS["finetune_rollouts"]]
    with connect(lake.root) as con:
        rows = con.execute("SELECT source_epoch, left_out, count(*) FROM finetune_rollouts GROUP BY ALL ORDER BY ALL")
        assert rows.fetchall() == [(0, None, 4), (1, "not_planned", 1), (1, "outside_window", 2)]


def test_epochs_and_time_are_chosen(tmp_path: Path) -> None:
    lake = recorded(tmp_path)
    assert taken(lake, finetuned(lake, epochs=[1])) == ["1.g.0"]
    assert taken(lake, finetuned(lake, since="1970-01-02T00:00:00+00:00")) == ["1.g.0"]


def test_nothing_chosen_is_an_error_that_says_what_there_is(tmp_path: Path) -> None:
    lake = recorded(tmp_path)
    with pytest.raises(SettingsError, match=r"run 'other' .* has rolled out no epoch; rolled out are: run 0, run 1"):
        finetuned(lake, runs=["run", "other"])
    with pytest.raises(SettingsError, match=r"rolled out no epoch among \[7\]"):
        finetuned(lake, epochs=[7])
    with pytest.raises(SettingsError, match=r"none of the 7 rollouts of run 0, run 1 began since 2030"):
        finetuned(lake, since="2030-01-01T00:00:00Z")
    with pytest.raises(ValidationError, match="swap the two"):
        finetuned(lake, since="2030-01-01T00:00:00Z", until="2029-01-01T00:00:00Z")
    with pytest.raises(ValidationError, match="timezone"):
        finetuned(lake, since="2030-01-01T00:00:00")


def test_a_finetuning_is_no_epoch_that_rolls_out_and_one_that_does_no_finetuning(tmp_path: Path) -> None:
    lake = recorded(tmp_path)
    epoch = finetuned(lake)
    assert lake.manifests.next_epoch("sft") == 0, "it is opened, and not finished"
    with pytest.raises(LakeError, match=r"`lightning-flows finetune` \(or `learn`\) goes on with it"):
        require_own_rollouts(epoch)
    own = lake.manifests.epoch("run", 1)
    assert own is not None
    require_own_rollouts(own)
    own.finish("rollouts", "k", {}, 1.0)
    lake.manifests.put_epoch(own.model_copy(update={"epoch": 0, "run": "busy"}))
    with pytest.raises(LakeError, match="epoch 0 of run 'busy' rolls out itself"):
        finetuned(lake, run="busy")


def test_a_finetuning_of_its_own_run_is_the_next_epoch_and_no_source_of_another(tmp_path: Path) -> None:
    recorded(tmp_path)
    wanted = settings(tmp_path, **SFT, finetune={})
    epoch = open_finetune(Run(wanted), 2, {"policy": "v0002"}).manifest
    assert [(s.run, s.epoch) for s in epoch.sources] == [("run", 0), ("run", 1)]
    again = open_finetune(Run(wanted), 3, {"policy": "v0003"}).manifest
    assert again.sources == epoch.sources and again.planned == epoch.planned


def test_what_was_learned_from_production_agents_is_a_source(tmp_path: Path) -> None:
    lake = recorded(tmp_path)
    learned = lake.manifests.epoch("run", 1)
    assert learned is not None
    learned.sources = [Source(run="run", epoch=1)]
    lake.manifests.put_epoch(learned)
    assert taken(lake, finetuned(lake, epochs=[1])) == ["1.g.0"]
