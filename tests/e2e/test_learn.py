"""Flow `learn`: agents in production use the gateway, and an epoch is trained on what they sent. No vLLM is needed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lightning_core.client import emit_reward, rollout
from lightning_core.epoch.epoch import Run
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.policies.store import PolicyStore
from lightning_core.settings_file import load_settings
from tests.e2e import without_vllm
from tests.e2e.test_two_epochs import write_settings

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(600)]


def call(url: str, token: str) -> None:
    """What any agent does: a call."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": "Hello"}], "temperature": 1.0})
    urllib.request.urlopen(urllib.request.Request(f"{url}/chat/completions", body.encode(), headers)).read()


def converse(url: str, key: str, number: int) -> None:
    """What a production agent does that opens its rollouts by itself: group, task, call, reward, output."""
    task = {"worth": (number + 1) / 8}
    with rollout(url, key, task=task, task_id=f"task-{number}", group=f"t{number % 2}") as mine:
        call(mine.base_url, mine.token)
        emit_reward(number, name="thumbs")
        mine.output = task


def fail(url: str, key: str) -> None:
    """It fails before its first call."""
    with contextlib.suppress(LookupError), rollout(url, key, task={"worth": 1}, task_id="failing", group="t1"):
        raise LookupError("no such ticket")


def mind_its_own(server: GatewayHandle) -> None:
    """A call with a token that was made on the gateway's machine: without task, group and end."""
    call(server.attempt_url("minted", "1") + "/v1", server.mint("minted", "1", "evaluate"))


def learn(settings: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from tests.e2e.test_learn import run; run()", str(settings)]
    return subprocess.run(program, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400)


def run() -> None:
    from lightning_flows.flows.prefect_api import prefect_api

    settings = load_settings(Path(sys.argv[1]), {})
    with prefect_api(settings.home):
        without_vllm.main("learn", sys.argv[1])


def test_an_epoch_is_trained_on_what_production_agents_sent_and_once_only(tmp_path: Path) -> None:
    grader = Path(__file__).with_name("production_grader.py")
    file = write_settings(tmp_path, evaluation={"every": 0}, reward={"grader": f"{grader}:grade"})
    settings = load_settings(file, {})
    with without_vllm.running(Run(settings), lambda _: None) as services:
        url, key = services.gateway.url, services.gateway.mint_opener(600)
        for number in range(8):
            converse(url, key, number)
        fail(url, key)
        mind_its_own(services.gateway)

    done = learn(file)
    assert done.returncode == 0, done.stderr[-3000:]
    lake, store = Lake(settings.home), PolicyStore(settings.home, "policy")
    epoch = lake.manifests.epoch("tiny", 0)
    assert epoch is not None and epoch.stages["rollouts"].output["rollouts"] == 10
    assert (store.versions(), store.current()) == (["v0000", "v0001"], "v0001")
    with catalog.connect(lake.root) as con:
        rollouts = con.execute(
            "SELECT task_id, group_id, outcome, error, reward, task, output FROM rollouts WHERE run = 'tiny' ORDER BY task_id"
        ).fetchall()
        trained = con.execute("SELECT count(DISTINCT rollout_id) FROM sequences WHERE run = 'tiny'").fetchone()
        left_out = con.execute("SELECT task_id, left_out FROM rollout_rewards WHERE left_out IS NOT NULL").fetchall()
        thumbs = con.execute(
            "SELECT count(*) FROM rewards_given WHERE reward_name = 'thumbs' AND source = 'emitted'"
        ).fetchone()
        in_trees = con.execute(
            "SELECT count(*) FROM span_tree WHERE op IN ('rollout.opened', 'rollout.ended')"
        ).fetchone()
    failed, minted, *others = rollouts
    assert failed == ("failing", "t1", "error", "LookupError: no such ticket", 0.0, '{"worth":1}', "null")
    assert minted[:6] == ("minted", "minted", "ok", None, None, None)
    worth = [(number + 1) / 8 for number in range(8)]
    assert [row[:5] for row in others] == [
        (f"task-{number}", f"t{number % 2}", "ok", None, worth[number]) for number in range(8)
    ]
    assert [(json.loads(row[5]), json.loads(row[6])) for row in others] == [({"worth": w}, {"worth": w}) for w in worth]
    assert (trained, thumbs, in_trees) == ((8,), (8,), (0,))
    assert left_out == [("minted", "no_reward")]

    again = learn(file)
    assert again.returncode != 0
    assert "no rollout is left to learn from (10 learned_from)" in again.stderr
    assert store.versions() == ["v0000", "v0001"]
