"""A run in Python: its tables as relations, DataFrames and LazyFrames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lightning_flows
from lightning_core.config import SettingsError
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import LakeError
from tests.lake_maker import derived, settings
from tests.scenarios import group, rows
from tests.spool_maker import store_rollout


@pytest.fixture
def run(tmp_path: Path) -> lightning_flows.Run:
    file = tmp_path / "settings.yaml"
    file.write_text("run: mine\nagent: {command: 'true'}\ntasks: {train: tasks.jsonl}\n")
    return lightning_flows.Run(file, {"home": str(tmp_path / "home")})


def store(run: lightning_flows.Run, *rollouts: str) -> None:
    lake = Lake(run.settings.home)
    for rollout in rollouts:
        store_rollout(run.settings.home, rollout, run="mine")
    lake.ingest()
    lake.rebuild_catalog()


def test_a_view_is_an_attribute_and_what_is_newer_is_seen(run: lightning_flows.Run) -> None:
    store(run, "r.1")
    before = run.spans
    assert before.aggregate("count(DISTINCT rollout_id)").fetchall() == [(1,)]
    store(run, "r.2")
    assert run.spans.aggregate("count(DISTINCT rollout_id)").fetchall() == [(2,)]
    assert before.aggregate("count(DISTINCT rollout_id)").fetchall() == [(1,)], (
        "what was asked before stays what it was"
    )
    assert run.sql("SELECT count(*) FROM spans WHERE rollout_id = $one", one="r.2").fetchall() == [(4,)]
    assert run.spans.pl(lazy=True).select("rollout_id").unique().sort("rollout_id").collect()[
        "rollout_id"
    ].to_list() == [
        "r.1",
        "r.2",
    ]
    assert {"rollouts", "calls", "train"} <= set(dir(run))


def test_a_table_has_the_rows_of_this_run_alone(run: lightning_flows.Run) -> None:
    lake = Lake(run.settings.home)
    for name in ("mine", "other"):
        lake.open_epoch(name, 0, "train", {})
    store(run, "r.1")
    assert run.epochs.project("run").distinct().fetchall() == [("mine",)]
    assert run.sql("SELECT count(DISTINCT run) FROM epochs").fetchall() == [(2,)]


def test_what_is_not_there_is_an_error_that_names_it(run: lightning_flows.Run, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no catalog yet"):
        _ = run.rollouts
    store(run, "r.1")
    with pytest.raises(AttributeError, match="no table or view 'nothing'"):
        _ = run.nothing
    with pytest.raises(SettingsError, match="no such file"):
        run.train()
    with pytest.raises(SettingsError, match=r"rollout\.group_sise"):
        lightning_flows.Run(tmp_path / "settings.yaml", {"rollout.group_sise": 1})


def test_a_rollout_is_told_with_its_calls_reward_and_advantage_and_a_notebook_shows_it(tmp_path: Path) -> None:
    attempts = group([1.0, 0.0], input_messages='[{"role": "user", "content": "1 < 2?"}]')
    lake, _ = derived(tmp_path, rows(attempts))
    lake.rebuild_catalog()
    run = lightning_flows.Run(settings(tmp_path))
    told = run.rollout("r.0")
    for part in (
        "r.0, run run, epoch 0",
        "call 1, solver: policy v0000",
        "user  1 < 2?",
        "reward 1 (reward 1.0 from grader)",
    ):
        assert part in repr(told)
    assert "= advantage +0.707, over 2 rollouts" in repr(told)
    shown = told._repr_html_()
    assert "1 &lt; 2?" in shown and "1 < 2?" not in shown
    assert told.seen.advantage is not None and told.seen.advantage.row["advantage"] == pytest.approx(0.707, abs=1e-3)
    with pytest.raises(LakeError, match=r"no rollout 'r\.9'; did you mean"):
        run.rollout("r.9")


def test_the_package_alone_imports_neither_duckdb_nor_prefect() -> None:
    program = "import sys, lightning_flows; sys.exit(bool({'duckdb', 'prefect'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
