"""A deploy of adapters, as the gateway's routes show it: the real server, and a vLLM that only keeps a list of names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest

from lightning_core.config import Settings
from lightning_core.policies.redeploy import RedeployFailed
from lightning_core.policies.store import PolicyStore
from lightning_core.policies.vllm_client import VllmError
from lightning_core.services import Services, deploy
from tests.gateway_rig import Rig, rig

MESSAGES: Any = [{"role": "user", "content": "hi"}]


class Names:
    """vLLM's adapters as names; what is done to them is told to `seen` while it is done."""

    def __init__(self, made: Rig) -> None:
        self.made = made
        self.loaded = ["base"]
        self.refuse: str | None = None
        self.routed_at_unload: list[set[str]] = []
        self.upstream = made.upstream
        self.state = SimpleNamespace(served_name="base")

    @contextmanager
    def client(self) -> Iterator[Names]:
        yield self

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

    def probe(self, model: str) -> list[float]:
        assert model in self.loaded
        return [float(len(model))]


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
        monkeypatch.setattr(PolicyStore, "checked", lambda store, version: store.folder / version)
        monkeypatch.setattr(PolicyStore, "set_current", lambda *_: None)
        yield made, Names(made), settings


def bring(parts: tuple[Rig, Names, Settings], version: str) -> None:
    made, vllm, settings = parts
    services = cast(Services, SimpleNamespace(server=made.handle, vllm=vllm, model=None))
    deploy(settings, services, dict.fromkeys(("planner", "solver"), version))


def sent(made: Rig, rollout: str, model: str) -> str:
    """The name under which a rollout's call went upstream."""
    key = made.handle.mint(rollout, "a", "train")
    agent = openai.OpenAI(base_url=made.base_url(rollout, "a"), api_key=key, max_retries=0)
    agent.chat.completions.create(model=model, messages=MESSAGES)
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


def test_a_deploy_that_fails_half_way_leaves_routes_that_are_served(parts: tuple[Rig, Names, Settings]) -> None:
    made, vllm, _ = parts
    bring(parts, "v0001")
    bring(parts, "v0002")
    vllm.refuse = "solver-v0003"
    with pytest.raises(RedeployFailed, match="solver-v0003 was not loaded"):
        bring(parts, "v0003")
    assert routed(made) <= set(vllm.loaded)
    assert sent(made, "r", "solver") == "solver-v0002" and sent(made, "r", "planner") == "planner-v0002"
