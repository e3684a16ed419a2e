"""What the server saw fail behind an attempt decides whose failure it was, also where the agent hides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from lightning_core.agents.attempt import AttemptResult
from lightning_core.config import Settings
from lightning_core.server.handle import ServerHandle
from tasks.rollout import shared_runner

NOTHING = {"unanswered": 0, "infrastructure_errors": 0, "last_error": None, "up_s": 20.0}


class Server:
    def __init__(self, **seen: Any) -> None:
        self.seen = NOTHING | seen

    def attempt(self, rollout_id: str, attempt_id: str) -> dict[str, Any]:
        return self.seen


@pytest.mark.parametrize(
    ("status", "seen", "told"),
    [
        ("ok", {}, None),
        ("error", {}, None),
        ("ok", {"unanswered": 1, "infrastructure_errors": 1, "last_error": "vLLM is gone"}, "vLLM is gone"),
        ("ok", {"infrastructure_errors": 1, "last_error": "vLLM is gone"}, None),
        ("timeout", {"infrastructure_errors": 1, "last_error": "vLLM is gone"}, "vLLM is gone"),
        ("ok", {"up_s": 9.0}, "the server was started again during the attempt"),
    ],
)
def test_what_the_server_saw_fail_is_not_the_agents(
    tmp_path: Path, status: str, seen: dict[str, Any], told: str | None
) -> None:
    settings = Settings.model_validate(
        {"home": tmp_path, "agent": {"command": "true"}, "tasks": {"train": "tasks.jsonl"}}
    )
    with shared_runner(settings, cast(ServerHandle, Server(**seen))) as runner:
        assert runner.failed_behind(AttemptResult("r", "a", status, None, None, 5 * 10**9, 15 * 10**9, 0)) == told
