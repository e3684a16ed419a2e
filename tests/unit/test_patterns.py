"""`agent_match` computed when an epoch begins: by a function, or by SQL over the catalog."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightning_core.config import PolicySettings, SettingsError
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.epoch.patterns import pattern, settle
from lightning_core.lake.lake import Lake
from lightning_core.lake.manifest import EpochManifest
from tests import lake_maker
from tests.lake_maker import Attempt, derived, table

_MOST_CALLS = "sql:SELECT max_by(agent, calls) FROM agents WHERE run = 'run'"


def a_rollout(number: int, reward: float) -> Attempt:
    """A planner calls once, a worker twice."""
    attempt = Attempt(f"r.{number}", f"a{number}")
    attempt.root()
    planner = attempt.agent("planner", at=(0.1, 0.3))
    attempt.call([1], [2], at=(0.15, 0.2), parent=planner)
    worker = attempt.agent("worker", at=(0.4, 0.9))
    attempt.call([1, 3], [4], at=(0.45, 0.5), parent=worker)
    attempt.call([1, 5], [6], at=(0.6, 0.7), parent=worker)
    attempt.reward(reward)
    return attempt


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for number, reward in enumerate((0.0, 1.0)) for row in a_rollout(number, reward).rows]
    return derived(tmp_path_factory.mktemp("home"), rows)[0].root.parent


@pytest.fixture
def lake(home: Path, tmp_path: Path) -> Lake:
    """A lake whose epoch 0 is derived."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    return Lake(tmp_path)


def next_epoch(number: int = 1) -> EpochManifest:
    return EpochManifest(run="run", epoch=number, opened_offset=0, sealed_offset=1 << 40)


def settled(lake: Lake, agent_match: str, epoch: EpochManifest | None = None) -> str:
    policy = PolicySettings(agent_match=agent_match)
    epoch = epoch or next_epoch()
    settle(Epoch(lake_maker.settings(lake.root.parent, policies=[policy]), epoch))
    return pattern(epoch, policy)


def test_sql_over_the_catalog_gives_the_pattern(lake: Lake) -> None:
    assert settled(lake, _MOST_CALLS) == "worker"


def test_a_function_gets_the_last_epochs_agents(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "choose.py"
    file.write_text(
        "def most(agents):\n    return '|'.join(sorted(a['agent'] for a in agents if a['calls'] == 4)) or None\n"
    )
    assert settled(lake, f"@{file}:most") == "worker"
    assert settled(lake, f"@{file}:most", next_epoch(0)) == ""  # nobody is known before the first epoch


def test_the_pattern_selects_what_is_trained(lake: Lake) -> None:
    settings = lake_maker.settings(lake.root.parent, policies=[PolicySettings(agent_match=_MOST_CALLS)])
    epoch = lake.manifests.epoch("run", 0)
    assert epoch is not None
    settle(Epoch(settings, epoch))
    derive(Epoch(settings, epoch), "chosen")
    trained = {row["agent"] for row in table(lake, epoch, "policy_calls") if row["left_out"] is None}
    assert trained == {"worker"}


def test_a_resumed_epoch_keeps_its_pattern(lake: Lake) -> None:
    epoch = next_epoch()
    settled(lake, _MOST_CALLS, epoch)
    epoch.patterns["policy"].pattern = "settled before"
    lake.manifests.put_epoch(epoch)
    again = lake.manifests.epoch("run", 1)
    assert again is not None
    assert settled(lake, _MOST_CALLS, again) == "settled before"
    assert settled(lake, "sql:SELECT 'other'", again) == "other"  # another setting is computed anew


@pytest.mark.parametrize(
    ("agent_match", "complaint"),
    [
        ("sql:SELECT '(?=x)'", "no pattern RE2 can take"),
        ("sql:SELECT 1", "gave 1; it has to give a regex"),
        ("sql:SELECT agent FROM agents", "several rows"),
        ("sql:SELECT nothing", "the query fails"),
        ("@no_such_module:f", "cannot be imported"),
        ("@math:sqrt", "failed: TypeError"),
    ],
)
def test_what_gives_no_pattern_names_the_policy(lake: Lake, agent_match: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=r"policies\.policy\.agent_match") as caught:
        settled(lake, agent_match)
    assert complaint in str(caught.value)


def test_the_expression_that_the_complaint_of_several_rows_suggests_takes_these_agents_alone(lake: Lake) -> None:
    with pytest.raises(SettingsError) as complaint:
        settled(lake, "sql:SELECT agent FROM agents")
    expression = str(complaint.value).partition(", say ")[2]
    assert settled(lake, f"sql:SELECT {expression} FROM (VALUES ('a.b'), ('c')) AS agents (agent)") == r"^(a\.b|c)$"


def test_an_epoch_without_its_pattern_is_not_derived(lake: Lake) -> None:
    settings = lake_maker.settings(lake.root.parent, policies=[PolicySettings(agent_match=_MOST_CALLS)])
    epoch = lake.manifests.epoch("run", 0)
    assert epoch is not None
    with pytest.raises(SettingsError, match="was not computed when epoch 0 began"):
        derive(Epoch(settings, epoch), "key")
