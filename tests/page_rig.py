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

from lightning_core.ui.app import app
from lightning_core.ui.guard import Allowed
from lightning_core.ui.serve import LOOPBACK
from tests.lake_maker import Attempt

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
