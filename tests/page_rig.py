"""The page over a home of a few rollouts, for tests of it: in this process, in a browser, of what feeds it."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from lightning_core.config import EvaluationSettings, RolloutSettings, TaskSettings
from lightning_core.epoch.derive import derive
from lightning_core.epoch.epoch import Epoch
from lightning_core.lake.manifest import EpochManifest
from lightning_core.ui.app import app
from lightning_core.ui.guard import Allowed
from lightning_core.ui.serve import LOOPBACK
from tests.lake_maker import Attempt, derived, settings, trained

Rows = list[dict[str, Any]]

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}javascript:alert(3)'
PAGES = (
    "/", "/run/run", "/run/run?by=time", "/run/run/tasks", "/run/run/tasks?mode=evaluate", "/run/run/rollouts", "/policies",
    "/run/run/group/g", "/run/run/task/g", "/run/run/rollout/r.0", "/run/run/rollout/r.0?raw=1", "/ask", "/ask?q=rollouts", "/search?q=r.",
    "/ask?q=SELECT+epoch%2C+reward+FROM+rollouts",
)  # fmt: skip


def rollout(number: int, reward: float, text: str = "", **root: Any) -> list[dict[str, Any]]:
    """A rollout of two agents and a tool: the worker's call is selected, the judge's is not."""
    made = Attempt(f"r.{number}", f"a{number}")
    task = {"question": f"What is 6 times 7?{text}", "answer": f"42{text}"}
    made.root(task=json.dumps(task), output=json.dumps({"answer": f"{reward}{text}"}), **root)
    worker, judge = made.agent(f"worker{text}"), made.agent("judge", (0.5, 0.9))
    asked = [{"role": "system", "content": f"Count.{text}"}, {"role": "user", "content": task["question"]}]
    said = [{"role": "assistant", "content": f"six times seven{text}"}]
    texts = {"input_messages": json.dumps(asked), "output_messages": json.dumps(said)}
    made.call([1, 2], [3, 4], (0.2, 0.25), worker, response_logprobs=[-0.01, -4.0], **texts)
    made.span(
        "search", (0.26, 0.27), worker, op="tool", tool_name=f"search{text}", tool_arguments=text, tool_result="42"
    )
    made.call([5], [6], (0.6, 0.65), judge)
    made.reward(reward)
    return made.rows


def group(name: str, rewards: tuple[float, ...], first: int, **root: Any) -> Rows:
    """Rollouts of a group of its own, numbered from `first`."""
    rows = [row for number, reward in enumerate(rewards, first) for row in rollout(number, reward, **root)]
    return [row | {"group_id": name if row["group_id"] else None, "task_id": name} for row in rows]


def one_epoch(home: Path) -> None:
    """A home with one trained epoch of three rollouts."""
    rows = [row for number, reward in enumerate((1.0, 0.0, 1.0)) for row in rollout(number, reward)]
    lake, epoch = derived(home, rows, agent_match="worker")
    Epoch(settings(home), epoch).save()
    trained(lake)


def curves(home: Path, first: int = 0) -> None:
    """A home with two epochs of three rollouts, the first of sft, evaluated after `first` of them and after both."""
    rows: Rows = []
    for number, (mode, epoch, tasks) in enumerate(
        (("evaluate", first, 2), ("train", 0, 3), ("train", 1, 3), ("evaluate", 2, 2))
    ):
        for task in range(tasks):
            made = Attempt(f"{mode}.{epoch}.{task}", "a", f"{mode}.{epoch}.{task}", start=100.0 + 60 * number)
            made.root(mode=mode, epoch=epoch, task_id=f"t{task}")
            made.reward(float(task == epoch))
            rows += made.rows
    lake, _ = derived(home, rows)
    of_run = settings(
        home,
        evaluation=EvaluationSettings(limit=192),
        rollout=RolloutSettings(tasks_per_epoch=3),
        tasks=TaskSettings(train="tasks.jsonl", sampler="unsolved"),
    )
    for mode, epoch in (("evaluate", first), ("train", 0), ("train", 1), ("evaluate", 2)):
        of_epoch = settings(home, algorithm="sft") if (mode, epoch) == ("train", 0) else of_run
        opened = Epoch(
            of_epoch, EpochManifest(run="run", epoch=epoch, mode=mode, opened_offset=0, sealed_offset=1 << 40)
        )
        derive(opened, "key")
        opened.save()
    lake.rebuild_catalog()


OWN = Allowed(LOOPBACK)


def open_page(home: Path, allowed: Allowed = OWN, host: str = "127.0.0.1") -> TestClient:
    return TestClient(app(home, allowed), base_url=f"http://{host}:4280", raise_server_exceptions=False)


def visible(page: str) -> str:
    """The text of a page, without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def until(true: Callable[[], bool], else_: str) -> None:
    """Wait for what another thread does; a minute at most."""
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends, else_
        time.sleep(0.05)
