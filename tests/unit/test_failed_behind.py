"""What the server saw fail behind an attempt decides whose failure it was, also where the agent hides it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import pytest

from lightning_core.agents.attempt import AttemptResult
from lightning_core.agents.runner import Runner
from lightning_core.agents.shared import close_runners, shared_runner
from lightning_core.config import Settings
from lightning_core.gateway.handle import GatewayHandle


def settings_of(home: Path) -> Settings:
    return Settings.model_validate({"home": home, "agent": {"command": "true"}, "tasks": {"train": "tasks.jsonl"}})


def runner_of(settings: Settings, server: GatewayHandle | None = None) -> AbstractContextManager[Runner]:
    return shared_runner(settings.agent, "policy", settings.home, server)


NOTHING = {"unanswered": 0, "infrastructure_errors": 0, "last_error": None, "up_s": 20.0}


class Server:
    def __init__(self, **seen: Any) -> None:
        self.seen = NOTHING | seen

    def attempt(self, rollout_id: str, attempt_id: str) -> dict[str, Any]:
        return self.seen


@pytest.mark.parametrize(
    ("status", "seen", "message"),
    [
        ("ok", {}, None),
        ("error", {}, None),
        ("ok", {"unanswered": 1, "infrastructure_errors": 1, "last_error": "vLLM is gone"}, "vLLM is gone"),
        ("ok", {"infrastructure_errors": 1, "last_error": "vLLM is gone"}, None),
        ("timeout", {"infrastructure_errors": 1, "last_error": "vLLM is gone"}, "vLLM is gone"),
        ("ok", {"up_s": 9.0}, "the gateway was started again during the attempt"),
    ],
)
def test_what_the_server_saw_fail_is_not_the_agents(
    tmp_path: Path, status: str, seen: dict[str, Any], message: str | None
) -> None:
    settings = settings_of(tmp_path)
    with runner_of(settings), runner_of(settings, cast(GatewayHandle, Server(**seen))) as runner:
        assert runner.failed_behind(AttemptResult("r", "a", status, None, None, 5 * 10**9, 15 * 10**9, 0)) == message


def test_a_pool_is_kept_from_one_that_runs_attempts_to_the_next(tmp_path: Path) -> None:
    settings, server = settings_of(tmp_path), cast(GatewayHandle, Server())
    with runner_of(settings) as kept:
        with runner_of(settings, server) as first, runner_of(settings, server) as beside:
            assert first is beside is kept
        with runner_of(settings, server) as closed:
            assert closed is kept and not closed.closed
            close_runners()
            with runner_of(settings, server) as late:
                assert late.closed  # it ends with those that were asked to
        with runner_of(settings, server) as next_:
            assert next_ is not kept and not next_.closed
    assert next_.closed
