"""`lightning-flows doctor`: an agent for each thing that can be missing."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from lightning_core.config import AgentSettings, PolicySettings, RewardSettings, Settings, TaskSettings
from lightning_core.doctor.canned import canned_model
from lightning_core.doctor.findings import Finding, findings
from lightning_core.doctor.trial import try_agent
from lightning_core.lake import catalog
from lightning_flows.flows.doctor import doctor
from tests import gateway_rig
from tests.canned_vllm import CannedVllm
from tests.gateway_rig import Rig, rig

AGENTS = Path(__file__).with_name("agents_for_the_doctor.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made, canned_model() as made.upstream:
        made.route(version="v0000")
        yield made


def examined(server: Rig, agent: str, run: str = "", **policy: Any) -> dict[str, Finding]:
    settings = Settings(
        run=run or agent,
        agent=AgentSettings(command=[sys.executable, str(AGENTS), agent]),
        tasks=TaskSettings(train="(none)"),
        policies=[PolicySettings(**policy)],
    )
    trial = try_agent(server.handle, settings, {"doctor": {"question": "What is 2 + 3?"}})
    return {finding.name: finding for finding in findings(trial)}


LACKS = [  # agent, level, finding, what was found, the remedy
    ("calls_nothing", "fatal", "no_calls", "no call", "OPENAI_BASE_URL"),
    ("forces_a_tool", "fatal", "untrainable", "1 of 1 calls", "tool_choice"),
    ("only_calls", "missing", "no_spans", "no spans", "OTLPSpanExporter"),
    ("spans_without_names", "missing", "no_names", "no agent has a name", "gen_ai.agent.name"),
    ("limits_its_attributes", "missing", "attribute_limit", "1 spans lost", "SpanLimits"),
]
LACKS_TOO = [
    ("embeds_with_the_policy", "missing", "refused", "gives no embeddings", "gateway.upstreams"),
    ("fails_at_once", "fatal", "no_calls", "no call", "mend what it failed of"),
    ("fails", "missing", "agent_error", "out of ideas", "failure_reward"),
    ("only_calls", "missing", "no_reward", "no reward", "reward.grader"),
    ("calls_elsewhere_too", "missing", "elsewhere", "1 calls", "OPENAI_BASE_URL"),
    ("all_is_there", "fine", "twins", "1 further", ""),
]


@pytest.mark.parametrize(
    ("agent", "level", "name", "what", "remedy"),
    [*LACKS, *(pytest.param(*row, marks=pytest.mark.extra) for row in LACKS_TOO)],
)
def test_what_an_agent_lacks_is_said_with_its_remedy(
    server: Rig, agent: str, level: str, name: str, what: str, remedy: str
) -> None:
    found = examined(server, agent, run=f"{agent}-{name}")
    assert found[name].level == level, found
    assert what in found[name].what
    assert remedy in found[name].remedy
    assert any(finding.level == "fatal" for finding in found.values()) == (level == "fatal")


def test_nothing_is_missing_where_all_is_there(server: Rig) -> None:
    found = examined(server, "all_is_there", agent_match="adder")
    assert {finding.level for finding in found.values()} == {"fine"}
    assert "adder" in found["names"].what
    assert found["tools"].what == "1 tool calls, 1 of them failed"


def test_calls_by_an_alias_are_their_policys_in_the_tables_and_train_it(server: Rig) -> None:
    server.alias({"openai/gpt-4o": "policy"}, policy={"version": "v0000"})
    settings = Settings(
        run="aliased",
        agent=AgentSettings(command=[sys.executable, str(AGENTS), "is_traced_and_asks_for_gpt_4o"]),
        tasks=TaskSettings(train="(none)"),
        policies=[PolicySettings(agent_match="adder", aliases=["openai/gpt-4o"])],
    )
    trial = try_agent(server.handle, settings, {"doctor": {"question": "What is 2 + 3?"}})
    with catalog.connect(trial.epoch.lake.root) as con:
        calls = con.sql(
            """
            SELECT policy_calls.policy, policy_calls.policy_version, policy_calls.agent, policy_calls.left_out, calls.model
            FROM policy_calls JOIN calls USING (run, rollout_id, span_id)
            WHERE run = 'aliased'
            """
        ).fetchall()
        tokens = con.sql(
            "SELECT DISTINCT policy, model FROM calls WHERE run = 'aliased' AND twin_of IS NULL"
        ).fetchall()
    assert calls == [("policy", "v0000", "adder", None, "openai/gpt-4o")]  # the instrumentation's record is its twin
    assert tokens == [("policy", "openai/gpt-4o")]
    assert all(finding.level == "fine" for finding in findings(trial)), findings(trial)


@pytest.mark.extra
def test_an_agent_match_that_takes_nobody_is_fatal(server: Rig) -> None:
    found = examined(server, "all_is_there", run="unmatched", agent_match="planner")
    assert found["nothing_matched"].level == "fatal"
    assert "'planner'" in found["nothing_matched"].what
    assert "adder" in found["nothing_matched"].remedy


def test_the_command_says_what_answered_and_ends_with_1_where_training_is_impossible(tmp_path: Path) -> None:
    def run(agent: str, *more: str) -> Any:
        return CliRunner().invoke(doctor, ["--agent", f"{sys.executable} {AGENTS} {agent}", *more])

    fine = run("is_traced_and_asks_for_gpt_4o", "--model", "openai/gpt-4o")
    assert (fine.exit_code, fine.output.splitlines()[-1]) == (0, "it can be trained"), fine.output
    assert "a canned reply" in fine.output
    unnamed = run("is_traced_and_asks_for_gpt_4o")
    assert (unnamed.exit_code, unnamed.output.splitlines()[-1]) == (
        1,
        "it can be trained once that line is in its settings",
    )
    assert "FATAL   unknown_model: the agent asks for 'openai/gpt-4o'" in unnamed.output
    assert '    aliases: ["openai/gpt-4o"]' in unnamed.output
    assert "agents: adder" in unnamed.output  # one run says all
    bad = run("calls_nothing")
    assert (bad.exit_code, bad.output.splitlines()[-1]) == (1, "it cannot be trained like this")
    assert "FATAL   no_calls" in bad.output
    assert "nothing was asked of anyone" in bad.output


def test_calls_to_a_model_of_an_upstream_alone_are_seen_and_train_nothing(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    with canned_model() as address:
        upstream = {"name": "judge", "base_url": f"{address}/v1", "models": ["gpt-judge"]}
        agent = {"command": [sys.executable, str(AGENTS), "asks_a_judge"]}
        settings = {"agent": agent, "gateway": {"upstreams": [upstream]}}
        (tmp_path / "tasks.jsonl").write_text('{"question": "?"}\n')
        file.write_text(json.dumps(settings | {"tasks": {"train": str(tmp_path / "tasks.jsonl")}}))
        result = CliRunner().invoke(doctor, [str(file)])
    assert result.exit_code == 1, result.output
    assert "FATAL   other_models: every call went to a frozen model or one of gateway.upstreams" in result.output
    assert "no_calls" not in result.output
    assert "elsewhere" not in result.output


def test_a_file_that_only_defines_its_agent_gets_the_lines_that_run_it_and_with_them_it_runs(tmp_path: Path) -> None:
    agent, model = tmp_path / "my_agent.py", "from openai import OpenAI\n\n\n"
    ask = "    reply = OpenAI().chat.completions.create(model='policy', messages=[{'role': 'user', 'content': task['question']}])\n"
    agent.write_text(f"{model}def run(task):\n{ask}    return reply.choices[0].message.content\n")
    command = ["--agent", f"{sys.executable} {agent}"]
    silent = CliRunner().invoke(doctor, command)
    assert silent.exit_code == 1
    assert "FATAL   ran_nothing" in silent.output
    assert "no_calls" not in silent.output
    assert f'agent.callable: "{agent}:run"' in silent.output
    lines = silent.output.splitlines()
    guard = next(place for place, line in enumerate(lines) if "__main__" in line)
    with agent.open("a") as file:
        file.write("\n\n" + textwrap.dedent("\n".join(lines[guard : guard + 3])) + "\n")
    done = CliRunner().invoke(doctor, command)
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "it can be trained"), done.output


class WithoutIds(CannedVllm):
    """As an upstream that is no vLLM."""

    async def _whole(self, body: dict[str, Any], chat: bool) -> web.Response:
        return await super()._whole(body | {"return_token_ids": False}, chat)

    async def _stream(self, request: web.Request, body: dict[str, Any], chat: bool) -> web.StreamResponse:
        return await super()._stream(request, body | {"return_token_ids": False}, chat)


@pytest.mark.extra  # half a minute
def test_where_a_model_serves_it_answers_and_missing_ids_are_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_rig, "CannedVllm", WithoutIds)
    home, tasks, file = tmp_path / "home", tmp_path / "tasks.jsonl", tmp_path / "settings.yaml"
    tasks.write_text(json.dumps({"question": "?"}) + "\n")
    agent = {"command": [sys.executable, str(AGENTS), "only_calls"]}
    file.write_text(json.dumps({"home": str(home), "agent": agent, "tasks": {"train": str(tasks)}}))
    with rig(home) as server:
        result = CliRunner().invoke(doctor, [str(file)])
        assert result.exit_code == 1, result.output
        assert f"the model that serves in {home}" in result.output
        assert "ids_missing" in result.output
        assert server.spans() == []  # nothing is written into the home that is served


@pytest.mark.extra
def test_grading_is_part_of_it(server: Rig, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("def grade(task, output, spans):\n    return task['no such key']\n")
    settings = Settings(
        run="graded",
        agent=AgentSettings(command=[sys.executable, str(AGENTS), "only_calls"]),
        tasks=TaskSettings(train="(none)"),
        reward=RewardSettings(grader=f"{tmp_path}/reward.py:grade"),
    )
    trial = try_agent(server.handle, settings, {"doctor": {}})
    found = {finding.name: finding for finding in findings(trial)}
    assert found["bad_reward"].level == "fatal"
    assert "no such key" in found["bad_reward"].what
