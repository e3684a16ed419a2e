"""`lightning-flows policies`, and what an epoch's end does with versions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Epoch, Run
from lightning_core.lake.manifest import EpochManifest
from lightning_core.policies.store import Lineage, PolicyStore
from lightning_flows.flows.cli import main
from lightning_flows.tasks.versions import note_evaluation, prune_versions
from tests.policy_files import store_with_base, write_model


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    store = store_with_base(tmp_path)
    for number in (1, 2, 3):
        folder = write_model(tmp_path / "training" / str(number), float(number))
        lineage = Lineage(run="r", epoch=number - 1, base_model="base", parent=f"v{number - 1:04d}")
        store.publish(folder, lineage)
    store.set_current("v0003")
    return store


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Result]:
    def ask(*arguments: str, home_last: bool = False) -> Result:
        home = ["--home", str(tmp_path)]
        given = ["policies", *arguments, *home] if home_last else ["policies", *home, *arguments]
        return CliRunner().invoke(main, given)

    return ask


def settings(home: Path, **more: Any) -> Settings:
    given = {"run": "r", "home": home, "agent": {"command": "true"}, "tasks": {"train": "x:y", "evaluate": "x:z"}}
    return Settings.model_validate(given | more)


def evaluated(home: Path, number: int, version: str, right: float, **more: Any) -> Any:
    epoch = EpochManifest(run="r", epoch=number, mode="evaluate", opened_offset=0, versions={"policy": version})
    row = {"held_out_right": right, "held_out_tasks": 20, "held_out_reward": right}
    return note_evaluation(Epoch(settings(home, **more), epoch), row)


def test_the_list_says_of_every_version_what_it_is_and_whether_it_is_whole(
    store: PolicyStore, tmp_path: Path, ask: Callable[..., Result]
) -> None:
    evaluated(tmp_path, 1, "v0001", 0.75)
    store.pin("v0002")
    (store.path("v0002") / "model.safetensors").unlink()
    rows = json.loads(ask("--format", "json").stdout)
    assert [(r["version"], r["parent"], r["run"], r["epoch"], r["right"], r["is"]) for r in rows] == [
        ("v0000", None, None, None, None, []),
        ("v0001", "v0000", "r", 0, 0.75, ["best"]),
        ("v0002", "v0001", "r", 1, None, ["pinned"]),
        ("v0003", "v0002", "r", 2, None, ["current"]),
    ]
    assert [r["problem"] is None for r in rows] == [True, True, False, True]
    assert rows[1]["bytes"] == store.manifest("v0001").size
    shown = ask()
    assert shown.exit_code == 0
    assert [line.split() for line in shown.stdout.splitlines() if "v0001" in line and "v0000" in line] == [
        ["policy", "v0001", "v0000", "r", "0", "75.0%", "0.0", "best", "yes"]
    ]
    assert "model.safetensors: missing" in shown.stderr


def test_changed_bytes_are_found_with_verify(store: PolicyStore, ask: Callable[..., Result]) -> None:
    weights = store.path("v0002") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert [r["problem"] for r in json.loads(ask("--format", "json").stdout)] == [None] * 4
    problems = [r["problem"] for r in json.loads(ask("--format", "json", "--verify").stdout)]
    assert [p is None for p in problems] == [True, True, False, True]


def test_a_pointer_to_a_version_that_is_gone_is_shown(store: PolicyStore, ask: Callable[..., Result]) -> None:
    (store.folder / "best").write_text("v0042\n")
    assert "best names it, and there is no such version" in ask().stderr


def test_pins_keep_and_collect_says_what_goes_before_it_goes(store: PolicyStore, ask: Callable[..., Result]) -> None:
    assert ask("pin", "policy", "v0001", home_last=True).exit_code == 0
    store.set_current("v0000")
    printed = ask("prune", "--dry-run").stdout
    assert "1 versions would go" in printed
    assert "v0001  stays: pinned" in printed
    assert store.versions() == ["v0000", "v0001", "v0002", "v0003"]
    assert ask("unpin", "policy", "v0001").exit_code == 0
    assert "2 versions removed" in ask("prune").stdout
    assert store.versions() == ["v0000", "v0003"]


def test_use_refuses_a_damaged_version(store: PolicyStore, ask: Callable[..., Result]) -> None:
    assert ask("use", "policy", "v0001").exit_code == 0
    assert store.current() == "v0001"
    (store.path("v0002") / "config.json").write_text("{}")
    refused = ask("use", "policy", "v0002")
    assert refused.exit_code == 1
    assert "Error: " in refused.stderr
    assert "config.json" in refused.stderr
    assert store.current() == "v0001"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pin", "polcy", "v0001"], "no policy 'polcy'"),
        (["pin", "policy", "v0009"], "no version 'v0009'"),
        (["--policy", "../x"], "no policy '../x'"),
        (["prune", "--policy", "x"], "no policy 'x'"),
    ],
)
def test_a_wrong_name_is_one_line_that_names_those_there_are(
    store: PolicyStore, ask: Callable[..., Result], arguments: list[str], message: str
) -> None:
    done = ask(*arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_evaluation_is_noted_in_the_version_and_moves_best(store: PolicyStore, tmp_path: Path) -> None:
    assert evaluated(tmp_path, 0, "v0000", 0.2) == {"policy": "v0000"}
    assert evaluated(tmp_path, 1, "v0001", 0.6) == {"policy": "v0001"}
    assert evaluated(tmp_path, 2, "v0002", 0.6, evaluation={"every": 2}) == {"policy": "v0001"}
    noted = store.manifest("v0001").evaluation
    assert noted is not None
    assert (noted.run, noted.epoch, noted.tasks, noted.right, noted.reward) == ("r", 1, 20, 0.6, 0.6)
    assert evaluated(tmp_path, 3, "v0003", 0.1, evaluation={"limit": 5}) == {"policy": "v0003"}, "other tasks"


def test_an_epoch_removes_what_nothing_needs_unless_the_settings_say_that_all_stays(
    store: PolicyStore, tmp_path: Path
) -> None:
    assert prune_versions(Run(settings(tmp_path, store={"keep_every": 1}))) == {}
    assert len(store.versions()) == 4
    assert prune_versions(Run(settings(tmp_path))) == {"policy": ["v0001"]}
    assert store.versions() == ["v0000", "v0002", "v0003"]


def test_who_asks_for_a_removed_version_gets_the_rule_the_nearest_that_is_kept_and_the_remedy(
    store: PolicyStore, tmp_path: Path, ask: Callable[..., Result]
) -> None:
    store.set_current("v0000")
    prune_versions(Run(settings(tmp_path)))
    assert "policy: 2 versions were removed, as nothing needed them: v0001, v0002" in ask().stdout
    for command in (
        ["export", "policy", "v0002", "--into", str(tmp_path / "out")],
        ["use", "policy", "v0002"],
        ["pin", "policy", "v0002"],
    ):
        done = ask(*command)
        assert done.exit_code == 1
        assert re.search(
            r"^Error: policy policy: v0002 was removed on 20\S+ \S+ by run r \(`store.keep_every: 10`: "
            r"nothing needed it\); the nearest that are kept: v0000 and v0003\. `store: \{keep_every: 1\}`",
            done.stderr,
        ), done.stderr
