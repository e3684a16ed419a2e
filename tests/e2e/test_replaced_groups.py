"""Groups that teach nothing are replaced, in an epoch that is killed between; a canned model stands in vLLM's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_core.epoch.epoch import Run
from lightning_core.epoch.plan import plan_training
from lightning_core.epoch.task_file import load_tasks
from lightning_core.settings_file import load_settings
from tests.e2e import kills
from tests.e2e.kills import Epoch
from tests.e2e.test_two_epochs import ask, write_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AGENT = """
import os
import time

from openai import OpenAI

from lightning_core.client import emit_reward

KINDS = ["easy", "mixed", "hard", "easy"] + ["hard", "mixed", "mixed", "mixed", "hard"] + ["mixed"] * 7


def tasks():
    return [{"id": f"t{n}", "kind": kind} for n, kind in enumerate(KINDS)]


def run(task):
    messages = [{"role": "user", "content": task["id"]}]
    text = OpenAI().chat.completions.create(model="policy", messages=messages).choices[0].message.content
    time.sleep(float(os.environ.get("PAUSE", "0")))
    emit_reward({"easy": 1.0, "hard": 0.0, "mixed": sum(map(ord, text)) % 97 / 97}[task["kind"]])
"""


@pytest.fixture
def run(tmp_path: Path, with_prefect: dict[str, str]) -> Epoch:
    (tmp_path / "crew.py").write_text(AGENT)
    settings = write_settings(
        tmp_path,
        agent={"callable": f"{tmp_path / 'crew.py'}:run", "timeout_s": 60, "environment": {"PAUSE": "0.3"}},
        tasks={"train": f"{tmp_path / 'crew.py'}:tasks", "sampler": "in_order"},
        rollout={"tasks_per_epoch": 4, "replaced_groups": 5, "group_size": 4, "concurrency": 4, "shards": 2},
        reward={},
        evaluation={},
    )
    return Epoch(settings, tmp_path / "home", with_prefect, program="tests.e2e.without_vllm", flow=("train-epoch",))


def test_an_epoch_has_the_groups_it_wants_or_its_budget_is_spent(run: Epoch) -> None:
    """Of four tasks one teaches; then of three further ones two; then one more does."""

    def replacing(epoch: Epoch) -> bool:
        found = epoch.manifest
        return found is not None and found.replaced > 0 and "rollouts" not in found.stages

    run.end_at(replacing, kills.tree)
    run.finish()
    assert run.rollouts_that_ran_twice() == []
    manifest = run.manifest
    assert manifest is not None and manifest.replaced == 4
    groups = ask(run.home, "SELECT group_id, count(*) FROM rollouts WHERE state = 'counts' GROUP BY ALL ORDER BY ALL")
    assert groups == [(f"tiny.0000.t{n}", 4) for n in range(8)]
    assert ask(run.home, "SELECT count(DISTINCT group_id) FROM triplets WHERE trained") == [(4,)]
    replaced = "SELECT value FROM signals WHERE signal = 'replaced_groups'"
    assert ask(run.home, replaced) == [(4.0,)]
    rounds = [line for line in run.log.read_text().splitlines() if "groups teach" in line]
    assert "3 groups teach, of 4 wanted; 1 further tasks" in rounds[-2], rounds

    attempts = run.attempts()
    run.finish()
    assert run.attempts() == attempts and "is done, with these settings" in run.log.read_text()

    settings = load_settings(run.settings_file)
    following = plan_training(Run(settings), load_tasks(settings.tasks.train, "tasks.train"), 1)
    assert following[0].task.id == "t8", "no task twice in a lap"
