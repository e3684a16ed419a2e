"""One pool of an agent for all that run it in this process: an epoch's shards, and the epochs of a run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_core.agents.attempt import AttemptResult
from lightning_core.agents.runner import Runner
from lightning_core.config import AgentSettings
from lightning_core.gateway.handle import GatewayHandle

_lock = threading.Lock()


@dataclass
class _Shared:
    """A runner, how many keep it, how many of these run attempts, and the gateway that those call."""

    runner: Runner
    users: int = 0
    running: int = 0
    gateway: GatewayHandle | None = None


_shared: dict[str, _Shared] = {}


def close_runners() -> None:
    """End the attempts of this process that still run; what waits for its turn is not begun."""
    with _lock:
        for shared in _shared.values():
            shared.runner.close()


@contextlib.contextmanager
def shared_runner(
    agent: AgentSettings, model: str, home: Path, gateway: GatewayHandle | None = None
) -> Iterator[Runner]:
    """Keep one preloaded pool for all that run the agent in this process; close it when the last of them is done.

    A flow of many epochs keeps it from one to the next. Those that run attempts give the gateway that these call; where one
    of them has closed the pool, they all are to end, and who comes after them has another.
    """
    key = f"{home} {agent.model_dump_json()}"
    with _lock:
        shared = _shared.get(key)
        if shared is None or (shared.runner.closed and not shared.running):
            shared = _shared[key] = _Shared(_runner(agent, model, home, key), 0 if shared is None else shared.users)
        shared.users += 1
        shared.running += gateway is not None
        shared.gateway = gateway or shared.gateway
    try:
        yield shared.runner
    finally:
        with _lock:
            shared = _shared[key]
            shared.users -= 1
            shared.running -= gateway is not None
            if not shared.users:
                _shared.pop(key).runner.close()


def _runner(agent: AgentSettings, model: str, home: Path, key: str) -> Runner:
    def failed_behind(result: AttemptResult) -> str | None:
        gateway = _shared[key].gateway
        assert gateway is not None  # of the one that runs the attempt
        seen = gateway.attempt(result.rollout_id, result.attempt_id)
        if seen["up_s"] < (result.end_ns - result.start_ns) / 1e9:  # of times, only lengths: a clock may jump
            return "the gateway was started again during the attempt"
        # An agent that ended well may have asked again and been answered, or have gone on without an answer.
        failed = seen["unanswered" if result.status == "ok" else "infrastructure_errors"]
        return str(seen["last_error"]) if failed else None

    return Runner(agent, model=model, infrastructure_errors=failed_behind, logs=home / "logs" / "attempts")
