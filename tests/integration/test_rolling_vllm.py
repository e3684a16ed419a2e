"""New weights rolled over two real vLLMs behind the real gateway, while agents call."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lightning_core.epoch import deploy as module
from lightning_core.policies.redeploy import Redeployed, hot_swap
from lightning_core.policies.vllm import VllmServer
from tests.integration.test_redeploy_load import BODY, Deployment, first_of, no_call_fails_while_deployed

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.timeout(600)]

ROLLS = 6


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("home"), replicas=2)
    yield made
    made.stop()


def weights_of(deployment: Deployment, *rollouts: str) -> set[int]:
    """Which weights, 0 or 1, answered a call of each of these rollouts."""
    found = set()
    for rollout in rollouts:
        url = deployment.gateway.attempt_url(rollout, "a") + "/v1/chat/completions"
        key = deployment.gateway.mint(rollout, "a", "evaluate")
        reply = httpx.post(url, json=BODY | {"logprobs": True}, headers={"Authorization": f"Bearer {key}"}, timeout=120)
        found.add(deployment.ran_on(first_of(reply.raise_for_status().json())))
    return found


def test_a_rollout_keeps_its_version_until_the_last_replica_is_swapped(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.deploy("v0002")
    assert weights_of(deployment, "old") == {0}
    seen: list[tuple[set[int], set[int]]] = []

    def look() -> None:
        seen.append((weights_of(deployment, "old"), weights_of(deployment, *(f"new{len(seen)}-{i}" for i in range(4)))))

    def swap(vllm: VllmServer, *args: Any, **more: Any) -> Redeployed:
        look()
        done = hot_swap(vllm, *args, **more)
        look()
        return done

    monkeypatch.setattr(module, "hot_swap", swap)
    deployment.deploy("v0003")
    before, between, last, after = seen
    assert before == ({0}, {0})
    assert between == ({0}, {1}), "one replica has the old weights still, for rollouts that began with them"
    assert last == after == ({1}, {1})
    assert weights_of(deployment, "old", *(f"later{i}" for i in range(8))) == {1}
    for vllm in deployment.fleet:
        with vllm.client() as client:
            assert client.version() == "v0003"


def test_no_call_fails_while_versions_are_rolled_and_each_names_what_it_ran_on(deployment: Deployment) -> None:
    no_call_fails_while_deployed(deployment, [f"v{number:04d}" for number in range(4, 4 + ROLLS)])


def test_a_replica_killed_in_its_turn_misses_the_version_and_the_next_deploy_brings_it_back(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = deployment.fleet
    deployment.deploy("v0010")

    def killed(vllm: VllmServer, *args: Any, **more: Any) -> Redeployed:
        if vllm is second:
            os.kill(vllm.state.pid, signal.SIGKILL)
        return hot_swap(vllm, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, "hot_swap", killed)
        deployment.deploy("v0011")
    assert "replica 1 of vLLM missed a version" in caplog.text
    route = deployment.gateway.routes()["policies"]["policy"]
    assert (route["version"], route["upstream"], route["replicas"]) == ("v0011", first.upstream, [])
    assert weights_of(deployment, *(f"meanwhile{i}" for i in range(4))) == {1}
    deployment.deploy("v0012")
    route = deployment.gateway.routes()["policies"]["policy"]
    assert {route["upstream"], *route["replicas"]} == {first.upstream, second.upstream}
    assert weights_of(deployment, *(f"whole{i}" for i in range(8))) == {0}
    for vllm in (first, second):
        with vllm.client() as client:
            assert client.version() == "v0012"
