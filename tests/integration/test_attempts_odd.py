"""Agents that take liberties with their calls and secrets, behind the real gateway and into the lake."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import AgentSettings, Settings, TaskSettings
from lightning_core.doctor.trial import Trial, try_agent
from lightning_core.lake import catalog
from tests.gateway_rig import Rig, rig

SECRET = "sk-not-to-be-seen-1234"
ASKS = """
import os, sys
from openai import OpenAI
client = OpenAI(max_retries={retries})
def ask(model="policy"):
    return client.chat.completions.create(model=model, messages=[{{"role": "user", "content": "?"}}]).choices[0].message.content
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture
def server(shared: Rig) -> Rig:
    shared.canned.fail_next = []
    return shared


def run(server: Rig, name: str, code: str, retries: int = 0, **settings: Any) -> Trial:
    agent = AgentSettings(command=[sys.executable, "-c", ASKS.format(retries=retries) + code], **settings)
    return try_agent(
        server.handle, Settings(run=name, agent=agent, tasks=TaskSettings(train="(none)")), {"task": {"n": 1}}
    )


def ask(trial: Trial, question: str) -> list[tuple[Any, ...]]:
    with catalog.connect(trial.epoch.lake.root) as con:
        return con.execute(question, [trial.epoch.run]).fetchall()


_CALLS = "SELECT left_out, response_tokens > 0 FROM policy_calls WHERE run = ? ORDER BY ALL"


@pytest.mark.extra
def test_a_client_that_retries_on_its_own_has_one_call_to_train_on(server: Rig) -> None:
    server.canned.fail_next = [500, 429]
    trial = run(server, "retries", "print(ask())", retries=4)
    assert trial.results["task"].status == "ok"
    assert [row for row in ask(trial, _CALLS) if row[1]] == [("no_reward", True)]


@pytest.mark.extra
def test_an_agent_that_swallows_its_errors_has_nothing_of_them_to_train_on(server: Rig) -> None:
    server.canned.fail_next = [400]
    trial = run(server, "swallows", "try:\n    ask()\nexcept Exception:\n    print('never mind')\nprint(ask())")
    assert trial.results["task"].status == "ok"
    calls = ask(trial, _CALLS)
    assert [row for row in calls if row[1]] == [("no_reward", True)]


@pytest.mark.extra
def test_a_model_that_is_not_ours_is_refused_and_the_tables_know_it(server: Rig) -> None:
    trial = run(server, "other_model", "ask('gpt-4o')")
    assert trial.results["task"].status == "error"
    assert "gpt-4o" in str(trial.results["task"].error)
    assert [untrainable for (untrainable,) in ask(trial, "SELECT untrainable FROM calls WHERE run = ?")] == ["refused"]


@pytest.mark.parametrize("way", ["print(os.environ['MY_SECRET'])", "sys.exit('key ' + os.environ['MY_SECRET'])"])
def test_a_secret_is_handed_on_by_name_and_in_no_span(server: Rig, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    trial = run(server, f"secret_{way[:5]}".replace(".", "_"), way, pass_environment=["MY_SECRET"])
    result = trial.results["task"]
    assert "[MY_SECRET]" in str(result.output) + str(result.error)
    assert ask(
        trial, f"SELECT count(*) FROM spans WHERE spans::VARCHAR LIKE '%{SECRET}%' AND ?::VARCHAR IS NOT NULL"
    ) == [(0,)]


@pytest.mark.extra
def test_a_daemon_of_a_command_does_not_outlive_its_attempt(server: Rig, tmp_path: Path) -> None:
    code = (
        "import subprocess\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "        os.chdir('/')\n"
        "        for fd in range(3): os.close(fd)\n"
        "        import time; time.sleep(600)\n"
        "    os._exit(0)\n"
        f"import time\nwhile not os.path.exists({str(tmp_path / 'pid')!r}): time.sleep(0.02)\n"
        "time.sleep(0.2); print(ask())"
    )
    trial = run(server, "daemon", code)
    assert trial.results["task"].status == "ok"
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
