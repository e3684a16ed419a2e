"""Advantages of single tokens (`algorithm: ppo`) where people look: views, explain, the page, what-if."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import lightning_flows
from lightning_core.config import SettingsError
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.training import write_sequence_calls, write_sequences
from lightning_core.lake.explain import explain
from lightning_core.lake.explain_view import view
from lightning_core.training.token_rows import score_rows
from lightning_core.training.weighing import run_weighing
from tests.lake_maker import Attempt, derived, settings, trained
from tests.page_rig import open_page, visible
from tests.unit.test_what_if import asked
from tests.view_rig import ask

PPO: dict[str, Any] = {"algorithm": "ppo", "options": {"normalize": False}}
# Reward, less that of the other rollout (0), less the critic's value: that of the nth token of a sequence is n / 10.
OF_ONE = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rollouts, right and wrong: a planner says two tokens, then a worker four; trained with ppo."""
    folder = tmp_path_factory.mktemp("home")
    rows = []
    for name, reward in (("right", 1.0), ("wrong", 0.0)):
        made = Attempt(name, "a", "g")
        made.root(task_id="t")
        made.call([1], [2, 3], (0.2, 0.3), made.agent("planner"))
        made.call([1, 2, 3, 4], [5, 6, 7, 8], (0.6, 0.7), made.agent("worker", (0.5, 0.9)))
        made.reward(reward)
        rows += made.rows
    lake, _ = derived(folder, rows, **PPO)
    trained(lake)
    run = Run(settings(folder, **PPO))
    epoch = run.at(run.lake.manifests.epoch("run", 0, "train") or pytest.fail("not derived"))
    sequences, calls = folder / "sequences.parquet", folder / "calls.parquet"
    assert write_sequences(epoch, "policy", sequences) == 2
    write_sequence_calls(epoch, "policy", calls)
    scored = {
        name: {
            row["sequence_id"]: (np.arange(sum(row["loss_mask"])) / 10).astype(np.float32)
            for row in pq.read_table(sequences).to_pylist()
        }
        for name in ("values", "logprobs")
    }
    weighed, _ = run_weighing(run.settings.policies[0].made_algorithm, scored, str(sequences), str(calls))
    lake.put_table(epoch.manifest, "token_scores policy", score_rows("policy", scored, weighed), "v0001")
    epoch.save()
    lake.rebuild_catalog()
    return folder


def test_views_have_the_mean_of_a_calls_tokens_and_all_of_them(home: Path) -> None:
    lake = Run(settings(home, **PPO)).lake
    rows = ask(lake, "SELECT rollout_id, agent, advantage FROM triplets ORDER BY rollout_id, agent")
    assert {(row["rollout_id"], row["agent"]): row["advantage"] for row in rows} == pytest.approx(
        {("right", "planner"): 0.95, ("right", "worker"): 0.65, ("wrong", "planner"): -1.05, ("wrong", "worker"): -1.35}
    )
    (row,) = ask(
        lake, "SELECT list(advantages ORDER BY call_id) AS all FROM call_advantages WHERE rollout_id = 'right'"
    )
    assert [number for call in row["all"] for number in call] == pytest.approx(OF_ONE)


def test_explain_says_that_each_token_has_an_advantage_of_its_own(home: Path) -> None:
    found = explain(home / "lake", "right")
    assert [call["advantage"] for call in found["calls"]] == pytest.approx([0.95, 0.65])
    assert found["calls"][1]["triplets"][0]["advantages"] == pytest.approx(OF_ONE[2:])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view(found))
    said = console.export_text()
    assert "each of the 4 tokens has an advantage of its own, from 0.5 to 0.8: mean 0.65" in said


def test_the_page_colours_each_token_by_its_own_and_says_who_earned_it(home: Path) -> None:
    with open_page(home) as page:
        shown = page.get("/run/run/rollout/right").text
    assert "advantage +0.90" in shown
    told = lightning_flows.Run(settings(home, **PPO)).rollout("right")
    assert "each token has an advantage of its own; the mean of this call's = advantage +0.950\n" in repr(told)
    assert "each token has an advantage of its own" in visible(shown)
    assert "+0.650" in visible(shown), "of the worker"
    assert [f"up{n}" in shown for n in (1, 2)] == [True, True]


def test_what_if_makes_them_anew_of_what_was_scored(home: Path) -> None:
    (epoch,) = asked(home, **PPO).epochs
    assert epoch["moved"] == 0.0
    (epoch,) = asked(home, **PPO | {"options": {"normalize": True}}).epochs
    assert 0 < epoch["moved"] < 0.5
    with pytest.raises(SettingsError, match="of some sequences that policy 'policy' would have the run scored nothing"):
        asked(home, **PPO, merge="per_call")


def test_what_if_by_ppo_of_a_run_without_a_critic_is_an_error(tmp_path: Path) -> None:
    made = Attempt("one", "a", "g")
    made.root(task_id="t")
    made.call([1], [2, 3], (0.2, 0.3))
    made.reward(1.0)
    lake, _ = derived(tmp_path, made.rows, advantages="reinforce")
    trained(lake)
    with pytest.raises(SettingsError, match="epoch 0: `algorithm: ppo` makes advantages of what it scores"):
        asked(tmp_path, **PPO)


def test_scores_of_sequences_that_are_made_otherwise_go(home: Path) -> None:
    run = Run(settings(home, **PPO, agent_match="worker"))
    manifest = run.lake.manifests.epoch("run", 0, "train")
    assert manifest is not None and "token_scores policy" in manifest.tables
    other = run.at(manifest)
    same = manifest.tables["sequences"].digest
    derive(Run(settings(home, **PPO)).at(manifest), "key")
    assert manifest.tables["sequences"].digest == same and "token_scores policy" in manifest.tables
    derive(other, "other")
    assert "token_scores policy" not in manifest.tables
