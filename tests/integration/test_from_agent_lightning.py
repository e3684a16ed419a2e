"""Agents written for Agent Lightning 0.3.0 (tests/agent_lightning/lit_agents.py), run as they are with the real package.

`make oracle-env` installs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import AgentSettings, PromptSettings, Settings, TaskSettings
from lightning_core.doctor.canned import canned_model
from lightning_core.doctor.trial import Trial, try_agent
from lightning_core.lake import catalog
from tests.gateway_rig import Rig, rig

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-oracle" / "bin" / "python"
AGENTS = ROOT / "tests" / "agent_lightning" / "lit_agents.py"
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not PYTHON.exists(), reason="agentlightning==0.3.0 is not installed (make oracle-env)"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made, canned_model() as made.upstream:
        made.route(version="v0000")
        yield made


def run(server: Rig, agent: str, **prompts: dict[str, Any]) -> Trial:
    settings = Settings(
        run=agent,
        agent=AgentSettings(
            callable=f"{AGENTS}:{agent}",
            python=PYTHON,
            preload=["agentlightning"],
            working_directory=server.home,  # AgentOps writes a log where it runs
            environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # it would wait for a download
        ),
        tasks=TaskSettings(train="(none)"),
        prompts={name: PromptSettings(**prompt) for name, prompt in prompts.items()},
    )
    return try_agent(server.handle, settings, {"task": {"question": "What is 2 + 3?"}})


def ask(trial: Trial, question: str) -> list[tuple[Any, ...]]:
    with catalog.connect(trial.epoch.lake.root) as con:
        return con.execute(question, [trial.epoch.run]).fetchall()


def test_a_rollout_function_its_rewards_and_operations_are_understood(server: Rig) -> None:
    trial = run(server, "decorated")
    assert trial.results["task"].status == "ok", trial.results["task"].error
    # What it returned is the last reward, and so the rollout's; of a reward of several dimensions the primary one is.
    assert ask(trial, "SELECT reward, calls FROM rollouts WHERE run = ?") == [(0.75, 1)]
    rewards = ask(trial, "SELECT reward_name, reward, source FROM rewards WHERE run = ? ORDER BY emitted")
    assert rewards == [("polite", 1.0, "agent"), ("primary", 0.75, "agent")]
    # Its tracer saw the call too, by the same response id.
    records = ask(trial, "SELECT recorded_by, twin_of IS NOT NULL FROM calls WHERE run = ? ORDER BY recorded_by")
    assert records == [("gateway", False), ("instrumentation", True)]
    trained = ask(trial, "SELECT prompt_tokens > 0, response_tokens > 0, left_out FROM policy_calls WHERE run = ?")
    assert trained == [(True, True, None)]
    operation = """
        SELECT attributes['agentlightning.operation.output'], attributes['agentlightning.operation.input.text'], rollout_id
        FROM spans SEMI JOIN (FROM attempts WHERE run = ?) USING (rollout_id, attempt_id)
        WHERE name = 'agentlightning.operation'
    """
    assert ask(trial, operation) == [("checked", "The answer is 5.", "decorated.task")]


@pytest.mark.parametrize(("agent", "reward"), [("asynchronous", 0.25), ("Classic", 1.0)])
def test_coroutines_and_classes_too(server: Rig, agent: str, reward: float) -> None:
    trial = run(server, agent)
    assert trial.results["task"].status == "ok", trial.results["task"].error
    assert ask(trial, "SELECT reward, calls FROM rollouts WHERE run = ?") == [(reward, 1)]


@pytest.mark.parametrize("agent", ["prompted", "Templated"])
def test_prompts_are_resources(server: Rig, agent: str) -> None:
    file = server.home / "writer.md"
    file.write_text("Stories for {who}.")
    trial = run(server, agent, writer={"file": file})
    assert trial.results["task"].status == "ok", trial.results["task"].error
    (found,) = ask(trial, "SELECT reward, prompts FROM rollouts WHERE run = ?")
    assert found == (1.0, '{"writer": "p0000"}')
    sent = """
        SELECT json_extract_string(input_messages, '$[0].content') FROM spans
        SEMI JOIN (FROM attempts WHERE run = ?) USING (rollout_id, attempt_id) WHERE policy IS NOT NULL
    """
    assert ask(trial, sent) == ([("Stories for Ann.",)] if agent == "prompted" else [])


def test_what_it_raises_is_the_agents_failure(server: Rig) -> None:
    trial = run(server, "failing")
    assert trial.results["task"].status == "error"
    assert "as agents do" in str(trial.results["task"].error)
