"""Flow `learn`: agents in production use the gateway, and an epoch is trained on what they sent. No vLLM is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from lightning_core import names
from lightning_core.client import SpanData, new_span_id, new_trace_id, post_spans
from lightning_core.epoch.epoch import Run
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.lake import catalog
from lightning_core.lake.lake import Lake
from lightning_core.policies.store import PolicyStore
from lightning_core.settings_file import load_settings
from tests.e2e import without_vllm
from tests.e2e.test_two_epochs import write_settings

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(600)]


def converse(server: GatewayHandle, rollout: str, ticket: str, reward: float | None) -> None:
    """What a production agent does: a call, a span of its own, and maybe a reward."""
    url, token = server.attempt_url(rollout, "1"), server.mint(rollout, "1", "evaluate")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": "Hello"}], "temperature": 1.0})
    request = urllib.request.Request(f"{url}/v1/chat/completions", body.encode(), headers)
    urllib.request.urlopen(request).read()
    now = time.time_ns()
    spans = [SpanData("handle", now, now, new_trace_id(), new_span_id(), attributes={"ticket": ticket})]
    if reward is not None:
        given = {names.REWARD: reward, names.REWARD_NAME: "reward", names.REWARD_SOURCE: "agent"}
        spans.append(SpanData(names.SPAN_REWARD, now, now, new_trace_id(), new_span_id(), attributes=given))
    post_spans(url, {"authorization": f"Bearer {token}"}, {}, spans)


def learn(settings: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from tests.e2e.test_learn import run; run()", str(settings)]
    return subprocess.run(program, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=400)


def run() -> None:
    from lightning_flows.flows.prefect_api import prefect_api

    settings = load_settings(Path(sys.argv[1]), {})
    with prefect_api(settings.home):
        without_vllm.main("learn", sys.argv[1])


def test_an_epoch_is_trained_on_what_production_agents_sent_and_once_only(tmp_path: Path) -> None:
    file = write_settings(tmp_path, evaluation={"every": 0}, reward={})
    settings = load_settings(file, {})
    with without_vllm.running(Run(settings), lambda _: None) as services:
        for number in range(8):
            converse(services.gateway, f"prod-{number}", ticket=f"t{number % 2}", reward=number / 8)
        converse(services.gateway, "without-reward", ticket="t1", reward=None)

    done = learn(file)
    assert done.returncode == 0, done.stderr[-3000:]
    lake, store = Lake(settings.home), PolicyStore(settings.home, "policy")
    epoch = lake.manifests.epoch("tiny", 0)
    assert epoch is not None and epoch.stages["rollouts"].output["rollouts"] == 9
    assert (store.versions(), store.current()) == (["v0000", "v0001"], "v0001")
    with catalog.connect(lake.root) as con:
        groups = con.execute("SELECT group_id, count(*) FROM rollouts WHERE run = 'tiny' GROUP BY ALL ORDER BY ALL")
        assert groups.fetchall() == [("t0", 4), ("t1", 5)]
        trained = con.execute("SELECT count(DISTINCT rollout_id) FROM sequences WHERE run = 'tiny'").fetchone()
        left_out = con.execute("SELECT rollout_id, left_out FROM rollout_rewards WHERE left_out IS NOT NULL").fetchall()
    assert trained == (8,)
    assert left_out == [("without-reward", "no_reward")]

    again = learn(file)
    assert again.returncode != 0
    assert "no rollout is left to learn from (9 learned_from)" in again.stderr
    assert store.versions() == ["v0000", "v0001"]
