"""The pages of rollouts, one rollout, a group and a task: what somebody who came to look for one thing has to find there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import TrackingSettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.manifest import EpochManifest
from lightning_core.tracking import traces
from tests.lake_maker import Attempt, derived, settings
from tests.page_rig import open_page, visible

Rows = list[dict[str, Any]]
ASKED, SAID = ({"role": "user", "content": "is it right?"},), ({"role": "assistant", "content": "RIGHT it is"},)
CHECKED: dict[str, Any] = {"input_messages": json.dumps(ASKED), "output_messages": json.dumps(SAID), "input_tokens": 7, "output_tokens": 2}  # fmt: skip


def checked(name: str, mode: str = "train", epoch: int = 0, version: str = "v0000", twin: bool = False) -> Rows:
    """A rollout of a writer, whom the policy answers, and a checker, whom a frozen model does; `twin`: the agent's instrumentation saw
    the checker's call too, without its messages."""
    made = Attempt(name, "a", f"{name}.g", start=100.0 + 10 * epoch)
    made.root(mode=mode, epoch=epoch, task_id="t", task='{"question": "6 times 7?", "answer": "42"}', output="42")
    writer, checker = made.agent("writer", (0.1, 0.4)), made.agent("checker", (0.5, 0.9))
    made.call([1], [2], (0.2, 0.3), writer, policy_version=version)
    above = made.span("ChatOpenAI", (0.59, 0.66), checker, op="llm", model="checker") if twin else checker
    made.span("chat checker", (0.6, 0.65), above, op="llm", response_id="x", model="base", sender="gateway", **CHECKED)
    made.reward(1.0)
    return made.rows


def home_of(home: Path, rows: Rows, *epochs: tuple[str, int], **changes: Any) -> None:
    """Derive these epochs of run `run` from the rows; changes are those of `settings`, of an epoch where its number begins them."""
    lake, _ = derived(home, rows)
    for mode, epoch in epochs:
        manifest = EpochManifest(run="run", epoch=epoch, mode=mode, opened_offset=0, sealed_offset=1 << 40)
        opened = Epoch(settings(home, **changes), manifest)
        derive(opened, "key")
        opened.save()
    lake.rebuild_catalog()


def test_evaluations_are_found_by_agent_version_and_kind(tmp_path: Path) -> None:
    rows = checked("t.0") + checked("e.0", "evaluate") + checked("e.2", "evaluate", 2, "v0002")
    home_of(tmp_path, rows, ("train", 0), ("evaluate", 0), ("evaluate", 2), agent_match="writer")
    with open_page(tmp_path) as page:
        for query, wanted in {
            "version=v0002": {"e.2"},
            "version=v0000": {"t.0", "e.0"},
            "version=v0000&mode=evaluate": {"e.0"},
            "agent=writer": {"t.0", "e.0", "e.2"},
            "agent=checker&mode=evaluate": {"e.0", "e.2"},
            "agent=checker&version=v0002": set(),
            "version=v0001": set(),
        }.items():
            shown = page.get(f"/run/run/rollouts?{query}").text
            assert set(re.findall(r">([te]\.\d)<", shown)) == wanted, query
        choices = re.search(r'<select name="version">(.*?)</select>', shown, re.DOTALL)
        assert choices and visible(choices[1]) == "any v0000 v0002"


@pytest.mark.parametrize("mode", ["train", "evaluate"])
@pytest.mark.parametrize("twin", [False, True], ids=["gateway", "twice"])
def test_a_frozen_models_call_has_its_messages_and_tokens(tmp_path: Path, mode: str, twin: bool) -> None:
    home_of(tmp_path, checked("r.0", mode, twin=twin), (mode, 0), agent_match="writer")
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/rollout/r.0").text)
    call = re.search(r"call 2 checker .*?RIGHT it is", said)
    assert call and "7+2 tokens" in call[0] and "is it right?" in call[0], said
    assert said.count("RIGHT it is") == 1


def test_a_frozen_models_call_is_in_the_comparison_of_evaluations(tmp_path: Path) -> None:
    rows = [row for epoch in range(2) for row in checked(f"e.{epoch}", "evaluate", epoch, twin=True)]
    home_of(tmp_path, rows, ("evaluate", 0), ("evaluate", 1), agent_match="writer")
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/compare?before=0&after=1&task=t").text)
    assert said.count("is it right?") == said.count("RIGHT it is") == 2, said


@pytest.mark.parametrize("uri", [None, "https://mlflow.example"])
def test_the_link_to_mlflow_says_what_has_to_run(tmp_path: Path, uri: str | None) -> None:
    home_of(tmp_path, checked("r.0"), ("train", 0), tracking=TrackingSettings(mlflow_uri=uri))
    traces.keep(tmp_path, "run", "http://127.0.0.1:5000/#/experiments/1", [traces.trace_id("run", "train", 0, "r.0")])
    with open_page(tmp_path) as page:
        said = visible(page.get("/run/run/rollout/r.0").text)
    runs = f"page runs: mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db , or lightning-flows up )"
    assert f"MLflow's trace (opens only while MLflow's {'server of the setting tracking.mlflow_uri runs' if uri else runs}" in said, said  # fmt: skip
