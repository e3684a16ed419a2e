"""A real vLLM behind the real gateway, deployed to while agents call, and killed while they wait."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from lightning_core import names
from lightning_core.config import GatewaySettings, Settings
from lightning_core.epoch.deploy import deploy
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.services import Services
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.policies.probe import Probe
from lightning_core.policies.store import Lineage, PolicyStore
from lightning_core.policies.supervisor import Supervisor
from lightning_core.policies.vllm import VllmServer
from lightning_core.policies.vllm_client import CHECK_TOKENS
from lightning_core.spool import spool
from tests.gateway_rig import attributes, float32, spans_of
from tests.tiny_model import make_tiny_llama

pytestmark = pytest.mark.slow

CLIENTS, SWAPS = 32, 20
BODY: dict[str, Any] = {
    "model": "policy",
    "messages": [{"role": "user", "content": "12*7"}],
    "max_tokens": 12,
    "temperature": 0,
}


class Deployment:
    """Store, vLLMs and gateway of one home; odd versions have other weights than even ones."""

    def __init__(self, home: Path, replicas: int = 1) -> None:
        self.settings = Settings.model_validate(
            {
                "run": "r",
                "home": home,
                "agent": {"command": "true"},
                "tasks": {"train": "tasks.jsonl"},
                "vllm": {
                    "kv_cache_gb": 0.05,
                    "max_model_len": 512,
                    "max_num_seqs": CLIENTS,
                    "replicas": replicas,
                },
            }
        )
        models = [make_tiny_llama(home / "models" / str(seed), seed=seed) for seed in (0, 1)]
        store = PolicyStore(home, "policy")
        store.publish_base(models[0], "tiny")
        probes = [trained(model) for model in models]
        for number in range(1, SWAPS + 1):
            output = shutil.copytree(models[number % 2], home / "output")
            store.publish(output, Lineage(base_model="tiny", epoch=number, run="r", probe=probes[number % 2]))
        self.fleet = [
            VllmServer.start(self.settings.vllm, store.path("v0000"), "policy", home=home, replica=replica)
            for replica in range(replicas)
        ]
        self.vllm = self.fleet[0]
        self.gateway = GatewayHandle.start(home, GatewaySettings(grpc_port=None), home / "log")
        self.deploy("v0000")
        self.first_logprobs = {number: self.first_logprob(number) for number in (0, 1)}

    def stop(self) -> None:
        self.gateway.stop()
        for vllm in self.fleet:
            vllm.stop()

    def deploy(self, version: str) -> None:
        services = cast(Services, SimpleNamespace(gateway=self.gateway, fleet=self.fleet, model=None))
        deploy(Run(self.settings), services, {"policy": version})

    def first_logprob(self, number: int) -> float:
        """Of the first token that greedy decoding gives with weights 0 or 1."""
        self.deploy(f"v{number:04d}")
        with self.vllm.client() as client:
            return first_of(client.request("POST", "/v1/chat/completions", json=BODY | {"logprobs": True}))

    def ran_on(self, logprob: float) -> int:
        """Whether weights 0 or 1 gave a greedy answer's first token this logprob."""
        found = [number for number, known in self.first_logprobs.items() if abs(logprob - known) < 1e-3]
        assert len(found) == 1
        return found[0]

    @contextmanager
    def agents(self) -> Iterator[list[str]]:
        """CLIENTS of them, calling one after another; what went wrong, or `ok` for each call that ended, is appended."""
        ended: list[str] = []
        stop = threading.Event()

        async def agent(number: int) -> None:
            key = self.gateway.mint(f"r{number}", "a", "evaluate")
            url = self.gateway.attempt_url(f"r{number}", "a") + "/v1/chat/completions"
            async with httpx.AsyncClient(timeout=120, headers={"Authorization": f"Bearer {key}"}) as http:
                while not stop.is_set():
                    reply = await http.post(url, json=BODY | {"stream": number % 2 == 0})
                    whole = reply.status_code == 200 and ("[DONE]" in reply.text or "usage" in reply.text)
                    ended.append("ok" if whole and '"error"' not in reply.text else reply.text)

        async def all_agents() -> None:
            await asyncio.gather(*(agent(number) for number in range(CLIENTS)))

        thread = threading.Thread(target=lambda: asyncio.run(all_agents()))
        thread.start()
        try:
            yield ended
        finally:
            stop.set()
            thread.join()

    def calls(self) -> list[dict[str, Any]]:
        records = (record for _, _, record in spool.read(self.settings.home / "spool", 0))
        return [attributes(span) for record in records for span in spans_of(record.body)]

    def versions_named(self, calls: list[dict[str, Any]]) -> set[str]:
        """All that these calls name, after a look at each: oldest first, and the one that computed it among them."""
        seen = set()
        for call in calls:
            versions = call[names.POLICY_VERSION].split(",")
            seen |= set(versions)
            assert [int(version[1:]) for version in versions] == sorted(int(version[1:]) for version in versions)
            first = float32(call[names.RESPONSE_LOGPROBS])[0]
            assert self.ran_on(first) in {int(version[1:]) % 2 for version in versions}
        return seen


def first_of(reply: dict[str, Any]) -> float:
    """The logprob of a reply's first token."""
    return float(reply["choices"][0]["logprobs"]["content"][0]["logprob"])


def trained(model: Path) -> Probe:
    """What a trainer would note of these weights."""
    from transformers import AutoModelForCausalLM

    from lightning_core.training.new_version import take_probe

    return Probe.model_validate(take_probe(AutoModelForCausalLM.from_pretrained(model), CHECK_TOKENS, 7))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("home"))
    yield made
    made.stop()


def wait_for(ended: list[str], more: int) -> None:
    until = len(ended) + more
    while len(ended) < until:
        threading.Event().wait(0.005)


def no_call_fails_while_deployed(deployment: Deployment, versions: list[str]) -> None:
    """Deploy one after another under load: every call is answered, and its span names what it ran on."""
    before = len(deployment.calls())
    with deployment.agents() as ended:
        for version in versions:
            wait_for(ended, CLIENTS)
            deployment.deploy(version)
        wait_for(ended, CLIENTS)
    assert set(ended) == {"ok"}
    calls = deployment.calls()[before:]
    assert len(calls) == len(ended)
    assert set(versions) <= deployment.versions_named(calls)


def test_no_call_fails_in_twenty_swaps_and_each_names_the_version_it_ran_on(deployment: Deployment) -> None:
    no_call_fails_while_deployed(deployment, [f"v{number:04d}" for number in range(1, SWAPS + 1)])


def test_calls_wait_for_a_killed_vllm_which_comes_back_with_the_current_version(deployment: Deployment) -> None:
    deployment.deploy("v0001")
    pid = deployment.vllm.state.pid
    with Supervisor(deployment.vllm) as supervisor, deployment.agents() as ended:
        wait_for(ended, CLIENTS)
        os.kill(pid, signal.SIGKILL)
        wait_for(ended, 3 * CLIENTS)
    assert supervisor.restarts == 1 and supervisor.gave_up is None
    # A stream whose first bytes were sent is told to have broken; nothing else fails.
    broken = [text for text in ended if text != "ok"]
    assert len(broken) <= CLIENTS // 2 and all(text.startswith("data: ") for text in broken), broken[:1]
    assert deployment.vllm.state.version == "v0001" and deployment.vllm.state.pid != pid
    with deployment.vllm.client() as client:
        assert client.version() == "v0001"
    assert deployment.first_logprob(1) == pytest.approx(deployment.first_logprobs[1], abs=1e-3)


def test_a_vllm_that_is_stopped_is_left_alone(deployment: Deployment) -> None:
    with Supervisor(deployment.vllm) as supervisor:
        deployment.vllm.stop()
        threading.Event().wait(2)
        assert supervisor.restarts == 0 and supervisor.gave_up is None
    assert not deployment.vllm.alive() and VllmServer.find(deployment.settings.home) is None
