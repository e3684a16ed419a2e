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


def shown_and_tried(home: Path) -> None:
    """A task that was demonstrated in epoch 0, and tried in epoch 1: wrongly, and with an error."""
    rows: Rows = []
    for name, epoch, output in (("shown", 0, "42"), ("tried", 1, "41"), ("broke", 1, None)):
        made = Attempt(name, "a", f"g{epoch}", start=100.0 + 10 * epoch)
        failed = {"outcome": "error", "error": "no such tool"} if output is None else {}
        task = json.dumps({"question": "6 times 7?", "query": "42", "base": "ten"})
        made.root(epoch=epoch, task_id="t", task=task, output=output, **failed)
        untrainable = "guided" if epoch == 0 else None
        made.call([1], [2], (0.2, 0.3), made.agent("writer"), untrainable=untrainable)
        made.reward(float(output == "42"))
        rows += made.rows
    lake, _ = derived(home, rows)
    for epoch, algorithm in ((0, "sft"), (1, "grpo")):
        manifest = EpochManifest(run="run", epoch=epoch, mode="train", opened_offset=0, sealed_offset=1 << 40)
        opened = Epoch(settings(home, algorithm=algorithm), manifest)
        derive(opened, "key")
        opened.save()
    lake.rebuild_catalog()


def test_a_demonstration_is_no_answer_of_the_agents_own(tmp_path: Path) -> None:
    shown_and_tried(tmp_path)
    with open_page(tmp_path) as page:
        rollout, group, task, listed, tried = (
            page.get(f"/run/run/{at}").text
            for at in ("rollout/shown", "group/g0", "task/t", "rollouts", "rollout/tried")
        )
        solved = {answer: page.get(f"/run/run/rollouts?solved={answer}").text for answer in ("yes", "no")}
    for shown in (rollout, group, task):
        assert "not counted as solved" in visible(shown)
    assert "given 42 1 reward demonstration" in visible(rollout), visible(rollout)
    assert "assistant · given, to be imitated" in rollout and "trained: imitated" in rollout
    assert "imitated: its policy is trained to say the same (sft)" in visible(rollout)
    assert not re.search(r'class="(card|reward) good', rollout + group)
    assert "e0 shown" in visible(task) and "e1 0/2" in visible(task)
    assert "never right in 2 rollouts; the best got a reward of 0; 2 different answers 1 demonstration beside" in visible(task), visible(task)  # fmt: skip
    assert "demonstration" in visible(listed)
    assert "shown</a>" not in solved["yes"] and "shown</a>" not in solved["no"]
    assert (
        "demonstration" not in visible(tried).partition("This task over the epochs")[0]
        and "assistant · sampled" in tried
    )


def test_expected_stands_beside_what_came_out_and_an_error_is_shown(tmp_path: Path) -> None:
    shown_and_tried(tmp_path)
    with open_page(tmp_path) as page:
        rollout, broke, group, task = (
            visible(page.get(f"/run/run/{at}").text) for at in ("rollout/tried", "rollout/broke", "group/g1", "task/t")
        )
    assert "expected 42 · got 41" in rollout, "the task's gold query"
    assert re.search(r"What the task says fields of the task .*; nothing here is the agent's output query expected 42 base ten", rollout), rollout  # fmt: skip
    assert "Output what the agent returned 41" in rollout
    assert "expected 42" in group and "got 41" in group and re.search(r"error .*no such tool", group), group
    assert "no such tool" in broke and "expected 42" in broke
    assert "no such tool" in rollout, "of another of its group"
    assert re.search(r"error no such tool 1 0 broke", task), task
