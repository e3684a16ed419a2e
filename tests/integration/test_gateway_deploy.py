"""A deploy of adapters, as the gateway's routes show it: the real server, and a vLLM that only keeps a list of names."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest

from lightning_core.config import Settings
from lightning_core.epoch.deploy import deploy
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.services import Services
from lightning_core.policies.probe import Probe
from lightning_core.policies.redeploy import RedeployFailed
from lightning_core.policies.store import PolicyStore
from lightning_core.policies.vllm_client import VllmError
from tests.gateway_rig import Rig, client, rig

MESSAGES: Any = [{"role": "user", "content": "hi"}]


class Names:
    """vLLM's adapters as names; what is done to them is told to `seen` while it is done."""

    def __init__(self, made: Rig) -> None:
        self.made = made
        self.loaded = ["base"]
        self.refuse: str | None = None
        self.says: dict[str, float] = {}  # name → the logprob it answers with
        self.routed_at_unload: list[set[str]] = []
        self.upstream = made.upstream
        self.state = SimpleNamespace(served_name="base", lora_rank=4, lora_slots=5, adapters={})
        self.dtype = "float32"
        self.asleep = False

    @contextmanager
    def client(self) -> Iterator[Names]:
        yield self

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def holds(self, adapters: dict[str, str]) -> None:
        self.state.adapters = adapters

    def alive(self) -> bool:
        return True

    def models(self) -> list[str]:
        return list(self.loaded)

    def load_lora(self, name: str, folder: Path) -> None:
        if name == self.refuse:
            raise VllmError("no such adapter")
        self.loaded.append(name)

    def unload_lora(self, name: str) -> None:
        self.routed_at_unload.append(routed(self.made))
        self.loaded.remove(name)

    def logprobs(self, model: str, token_ids: list[int]) -> list[float]:
        assert model in self.loaded
        return [self.says.get(model, -1.0)] * (len(token_ids) - 1)


def routed(made: Rig) -> set[str]:
    """Every name that the gateway may send upstream now."""
    routes = made.handle.routes()["policies"].values()
    return {name for route in routes for name in (route["model"], *(o["model"] for o in route["loaded"].values()))}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Rig, Names, Settings]]:
    with rig(tmp_path) as made:
        made.handle.set_routes({"policies": {}})
        settings = Settings.model_validate(
            {
                "run": "r",
                "home": tmp_path,
                "agent": {"command": "true"},
                "tasks": {"train": "tasks.jsonl"},
                "policies": [{"name": name, "lora": {"rank": 4}} for name in ("planner", "solver")],
            }
        )
        (tmp_path / "adapter_config.json").write_text('{"r": 4}')
        monkeypatch.setattr(PolicyStore, "checked", lambda store, version: tmp_path)
        probe = Probe(token_ids=[1, 2], logprobs=[-1.0])
        monkeypatch.setattr(
            PolicyStore, "manifest", lambda store, version: SimpleNamespace(version=version, probe=probe)
        )
        monkeypatch.setattr(PolicyStore, "set_current", lambda *_: None)
        yield made, Names(made), settings
        made.canned.gate = None


def bring(parts: tuple[Rig, Names, Settings], version: str) -> None:
    made, vllm, settings = parts
    services = cast(Services, SimpleNamespace(gateway=made.handle, fleet=[vllm], model=None))
    deploy(Run(settings), services, dict.fromkeys(("planner", "solver"), version))


def sent(made: Rig, rollout: str, model: str) -> str:
    """The name under which a rollout's call went upstream."""
    client(made, rollout, "a").chat.completions.create(model=model, messages=MESSAGES)
    return str(made.canned.requests[-1]["model"])


def test_no_adapter_is_unloaded_while_a_route_names_it(parts: tuple[Rig, Names, Settings]) -> None:
    made, vllm, _ = parts
    for number in range(1, 5):
        bring(parts, f"v{number:04d}")
        assert routed(made) <= set(vllm.loaded)
    gone = ["planner-v0001", "solver-v0001", "planner-v0002", "solver-v0002"]
    assert [name not in routes for name, routes in zip(gone, vllm.routed_at_unload, strict=True)] == [True] * 4
    # The next policy's version was not named before it was loaded, nor was a former one taken away.
    assert vllm.routed_at_unload[0] == {"base", "planner-v0003", "planner-v0002", "solver-v0002", "solver-v0001"}


def test_after_a_deploy_a_rollout_goes_on_with_its_adapter_and_a_new_one_begins_with_the_new(
    parts: tuple[Rig, Names, Settings],
) -> None:
    made, _, _ = parts
    bring(parts, "v0001")
    assert sent(made, "old", "planner") == "planner-v0001"
    bring(parts, "v0002")
    assert sent(made, "old", "planner") == "planner-v0001"
    assert sent(made, "new", "planner") == "planner-v0002"
    assert sent(made, "new", "solver@v0001") == "solver-v0001" and sent(made, "new", "planner@v0000") == "base"
    bring(parts, "v0003")
    assert sent(made, "old", "planner") == "planner-v0003"
    with pytest.raises(openai.NotFoundError, match="planner@v0002"):
        sent(made, "new", "planner@v0001")


def test_a_server_that_runs_learns_aliases_with_the_deploy_that_has_them(parts: tuple[Rig, Names, Settings]) -> None:
    made, vllm, settings = parts

    def named(planner: list[str], solver: list[str]) -> tuple[Rig, Names, Settings]:
        given = zip(settings.policies, (planner, solver), strict=True)
        policies = [policy.model_copy(update={"aliases": names}) for policy, names in given]
        return made, vllm, settings.model_copy(update={"policies": policies})

    bring(parts, "v0001")
    with pytest.raises(openai.NotFoundError, match=r'aliases: \["gpt-4o"\]'):
        sent(made, "r", "gpt-4o")
    bring(named(["gpt-4o"], ["*"]), "v0001")
    assert sent(made, "r", "gpt-4o") == "planner-v0001" and sent(made, "r", "o3") == "solver-v0001"
    bring(named([], ["gpt-4o"]), "v0002")
    assert sent(made, "new", "gpt-4o") == "solver-v0002"
    vllm.refuse = "solver-v0003"
    with pytest.raises(RedeployFailed):
        bring(named(["gpt-4o"], []), "v0003")
    assert sent(made, "new", "gpt-4o") == "solver-v0002", "as before the deploy"


def test_a_deploy_that_fails_half_way_leaves_routes_that_are_served(parts: tuple[Rig, Names, Settings]) -> None:
    made, vllm, _ = parts
    bring(parts, "v0001")
    bring(parts, "v0002")
    vllm.refuse = "solver-v0003"
    with pytest.raises(RedeployFailed, match="solver-v0003 was not loaded"):
        bring(parts, "v0003")
    assert routed(made) <= set(vllm.loaded)
    assert sent(made, "r", "solver") == "solver-v0002" and sent(made, "r", "planner") == "planner-v0002"


def test_an_adapter_that_computes_something_else_than_was_trained_is_taken_back(
    parts: tuple[Rig, Names, Settings],
) -> None:
    made, vllm, _ = parts
    bring(parts, "v0001")
    vllm.says["planner-v0002"] = -1.5
    with pytest.raises(RedeployFailed, match=r"planner-v0002 was not loaded.* 0\.5 nats off the trainer's"):
        bring(parts, "v0002")
    assert set(vllm.loaded) == {"base", "planner-v0001", "solver-v0001"} == {"base", *vllm.state.adapters}
    assert sent(made, "r", "planner") == "planner-v0001"


def test_a_rank_above_the_servers_is_refused_before_anything_is_loaded(
    parts: tuple[Rig, Names, Settings], tmp_path: Path
) -> None:
    made, vllm, _ = parts
    bring(parts, "v0001")
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    with pytest.raises(RedeployFailed, match=r"rank 8, and vLLM was started for up to 4; stop it"):
        bring(parts, "v0002")
    assert vllm.loaded == ["base", "planner-v0001", "solver-v0001"]
    assert sent(made, "r", "planner") == "planner-v0001"


def test_what_calls_in_flight_use_is_not_evicted_and_full_slots_are_an_error(
    parts: tuple[Rig, Names, Settings],
) -> None:
    made, vllm, _ = parts
    bring(parts, "v0001")
    made.gate()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(sent, made, "old", "planner")
        while "planner-v0001" not in made.handle.serving():
            time.sleep(0.01)
        bring(parts, "v0002")
        bring(parts, "v0003")  # the solver's first makes room; the planner's is used
        assert set(vllm.loaded) == {
            "base",
            "planner-v0001",
            "planner-v0002",
            "planner-v0003",
            "solver-v0002",
            "solver-v0003",
        }
        bring(parts, "v0004")
        assert set(vllm.loaded) == {
            "base",
            "planner-v0001",
            "planner-v0003",
            "planner-v0004",
            "solver-v0003",
            "solver-v0004",
        }
        vllm.state.lora_slots = 3
        with pytest.raises(
            RedeployFailed, match=r"3 slots .* all taken .*live rollouts use planner-v0001.*vllm\.lora_slots"
        ):
            bring(parts, "v0005")
        assert routed(made) <= set(vllm.loaded)
        made.open()
        assert slow.result() == "planner-v0001"
    assert sent(made, "new", "planner") == "planner-v0004"


def test_an_older_version_that_is_routed_to_again_is_not_the_one_that_goes(parts: tuple[Rig, Names, Settings]) -> None:
    made, vllm, settings = parts
    parts = (made, vllm, settings.model_copy(update={"policies": settings.policies[:1]}))
    for version in ("v0004", "v0005", "v0002"):  # the last one by hand, or by another run
        bring(parts, version)
    assert set(vllm.loaded) == {"base", "planner-v0002", "planner-v0005"}
    assert sent(made, "old", "planner") == "planner-v0002"
    vllm.state.lora_slots = 2
    vllm.refuse = "planner-v0006"
    with pytest.raises(RedeployFailed, match="planner-v0006 was not loaded"):
        bring(parts, "v0006")
    assert sent(made, "new", "planner") == "planner-v0002"
    vllm.refuse = None
    bring(parts, "v0006")
    assert set(vllm.loaded) == {"base", "planner-v0002", "planner-v0006"}
    assert sent(made, "old", "planner") == "planner-v0002"


def test_an_adapter_that_a_call_began_on_while_a_newer_one_was_loaded_stays(
    parts: tuple[Rig, Names, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, vllm, _ = parts
    bring(parts, "v0001")
    assert sent(made, "old", "planner") == "planner-v0001"
    bring(parts, "v0002")
    load = vllm.load_lora
    with ThreadPoolExecutor(1) as pool:

        def load_slowly(name: str, folder: Path) -> None:
            load(name, folder)
            if name == "planner-v0003":
                made.gate()
                calls.append(pool.submit(sent, made, "old", "planner"))
                while "planner-v0001" not in made.handle.serving():
                    time.sleep(0.01)

        calls: list[Future[str]] = []
        monkeypatch.setattr(vllm, "load_lora", load_slowly)
        try:
            bring(parts, "v0003")
        finally:
            made.open()
        assert "planner-v0001" in vllm.loaded and "solver-v0001" not in vllm.loaded
        assert calls[0].result() == "planner-v0001"


def test_a_vllm_that_is_gone_is_started_again_for_policies_that_have_no_adapter_yet(
    parts: tuple[Rig, Names, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, vllm, _ = parts
    begun: list[str] = []
    monkeypatch.setattr(vllm, "alive", lambda: bool(begun))
    monkeypatch.setattr(vllm.state, "weights", "base", raising=False)
    monkeypatch.setattr(vllm.state, "version", "v0000", raising=False)
    monkeypatch.setattr(vllm, "restart", lambda weights, version: begun.append(version), raising=False)
    bring(parts, "v0000")
    assert begun == ["v0000"] and sent(made, "r", "solver") == "base"


def test_a_vllm_that_dies_after_the_last_adapter_was_loaded_is_a_failed_redeploy(
    parts: tuple[Rig, Names, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, vllm, _ = parts
    bring(parts, "v0001")

    def gone() -> list[str]:
        raise VllmError("vLLM cannot be reached")

    monkeypatch.setattr(vllm, "load_lora", lambda name, folder: vllm.loaded.append(name))
    monkeypatch.setattr(vllm, "holds", lambda _: monkeypatch.setattr(vllm, "models", gone))
    with pytest.raises(RedeployFailed, match="cannot be reached"):
        bring(parts, "v0002")
    assert made.handle.routes()["policies"]["planner"]["version"] == "v0001"


def test_a_frozen_model_is_asked_of_a_vllm_that_missed_nothing(parts: tuple[Rig, Names, Settings]) -> None:
    made, first, settings = parts
    settings = settings.model_copy(update={"frozen": ["critic"]})
    with made.beside() as (upstream, _):
        second = Names(made)
        second.upstream, first.state.replica, second.state.replica = upstream, 0, 1
        services = cast(Services, SimpleNamespace(gateway=made.handle, fleet=[first, second], model=None))
        versions = dict.fromkeys(("planner", "solver"), "v0001")
        deploy(Run(settings), services, versions)
        assert made.handle.routes()["frozen"]["critic"]["upstream"] == first.upstream
        first.refuse = "solver-v0002"
        deploy(Run(settings), services, dict.fromkeys(versions, "v0002"))
        routes = made.handle.routes()
        assert routes["policies"]["solver"]["upstream"] == routes["frozen"]["critic"]["upstream"] == second.upstream
        assert list(routes["policies"]["solver"]["loaded"]) == ["v0000", "v0001"], "what began with it goes on there"
