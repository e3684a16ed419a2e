"""What other settings would have made of a run's rollouts, beside the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lightning_core.config import SettingsError
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.what_if import WhatIf, beside, compare, kept
from lightning_core.lake import catalog
from lightning_flows.flows import what_if_command
from lightning_flows.flows.cli import main
from tests.lake_maker import Attempt, derived, settings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of two rollouts: a planner and a worker; in the second group both rollouts do equally well, nearly."""
    folder = tmp_path_factory.mktemp("home")
    rows = []
    for group, rewards in (("far", (1.0, 0.0)), ("near", (0.5, 0.45))):
        for number, reward in enumerate(rewards):
            made = Attempt(f"{group}.{number}", "a", group)
            made.root(task_id=group)
            planner, worker = made.agent("planner"), made.agent("worker", (0.5, 0.9))
            made.call([1], [2, 3], (0.2, 0.3), planner)
            made.call([4], [5, 6, 7, 8], (0.6, 0.7), worker)
            made.reward(reward)
            rows += made.rows
    lake, _ = derived(folder, rows)
    lake.rebuild_catalog()
    return folder


def asked(home: Path, **changes: object) -> WhatIf:
    """As the command does, without Prefect around the derivation."""
    wanted = settings(home, **changes)
    other = Run(beside(wanted, "other"))
    for manifest in other.lake.manifests.epochs("run"):
        epoch = other.at(manifest)
        derive(epoch, "key")
        epoch.save()
    other.lake.rebuild_catalog()
    return compare(wanted, other.home, "other", ["…"])


def test_the_same_settings_change_nothing(home: Path) -> None:
    (epoch,) = asked(home).epochs
    assert epoch["moved"] == 0.0
    assert epoch["groups_before"] == epoch["groups_after"] == 2
    assert epoch["tokens_before"] == epoch["tokens_after"] == 24


def test_a_spread_that_is_asked_for_leaves_a_group_out_and_half_of_the_gradient_changes_hands(home: Path) -> None:
    found = asked(home, min_spread=0.1)
    (epoch,) = found.epochs
    assert (epoch["groups_before"], epoch["groups_after"]) == (2, 1)
    assert epoch["moved"] == pytest.approx(0.5, abs=0.01), "grpo divides by the deviation, so both groups pushed alike"
    assert found.tasks[0]["share_of_moved"] == pytest.approx(0.5, abs=0.01)


def test_an_agent_alone_has_all_of_the_gradient(home: Path) -> None:
    weights = {
        row["agent"]: (row["weight_before"], row["weight_after"]) for row in asked(home, agent_match="worker").agents
    }
    assert weights["worker"] == (pytest.approx(4 / 6), 1.0)
    assert weights["planner"] == (pytest.approx(2 / 6), 0.0)


def test_the_run_itself_stays_as_it_was_and_the_result_is_kept(home: Path) -> None:
    before = {p: p.read_bytes() for p in (home / "lake").rglob("*") if p.is_file() and p.name != "reading.lock"}
    found = asked(home, agent_match="worker")
    assert {p: p.read_bytes() for p in before} == before
    assert kept(home, "run") == [found] and kept(home, "another") == []
    with catalog.connect(home / "what-if" / "other" / "lake") as con:
        assert con.execute("SELECT count(*) FROM advantages WHERE left_out IS NULL").fetchall() != [(0,)]


def test_a_run_that_is_not_derived_is_an_error_that_says_so(home: Path) -> None:
    with pytest.raises(SettingsError, match="no training epoch that is derived"):
        beside(settings(home).model_copy(update={"run": "another"}), "other")


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
def test_a_name_that_leads_out_of_its_folder_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of that name is made anew: under `..` it would be the home, with all its runs."""
    monkeypatch.setattr(what_if_command, "flow_of", lambda *_: pytest.fail("it went on"))
    file = tmp_path / "settings.yaml"
    file.write_text("agent: {command: 'true'}\ntasks: {train: t.jsonl}\n")
    done = CliRunner().invoke(main, ["what-if", str(file), "--set", "reward.failure_reward=1", "--name", name])
    assert done.exit_code == 1 and f"--name {name}: letters" in done.output
