"""New weights rolled over three replicas, as agents at the real gateway see it; the replicas only say who was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import openai
import pytest

from lightning_core.config import Settings
from lightning_core.epoch import deploy as module
from lightning_core.epoch.deploy import deploy
from lightning_core.epoch.epoch import Run
from lightning_core.epoch.services import Services
from lightning_core.policies.redeploy import Redeployed, RedeployFailed
from lightning_core.policies.store import PolicyStore, StoreError
from tests.gateway_rig import Rig, rig


class Replica:
    """As much of a VllmServer as a deploy looks at."""

    def __init__(self, number: int, upstream: str, canned: Any) -> None:
        self.upstream, self.canned = upstream, canned
        self.state = SimpleNamespace(served_name="policy", version="v0001", weights="v0001", replica=number)
        self.asleep = False

    @contextmanager
    def client(self) -> Iterator[Replica]:
        yield self

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def alive(self) -> bool:
        return True

    def models(self) -> list[str]:
        return ["policy"]


class Fleet:
    """`during[n]` is called while replica n is swapped; those in `broken` fail, `restored[n]` is called when n has the former."""

    def __init__(self, made: Rig, replicas: list[Replica]) -> None:
        self.made, self.replicas = made, replicas
        self.during: dict[int, Callable[[], None]] = {}
        self.restored: dict[int, Callable[[], None]] = {}
        self.broken: set[int] = set()
        self.settings = Settings.model_validate(
            {
                "run": "r",
                "home": made.home,
                "agent": {"command": "true"},
                "tasks": {"train": "tasks.jsonl"},
                "vllm": {"replicas": len(replicas)},
            }
        )

    def swap(self, vllm: Replica, folder: Path, version: str, *, probe: Any, before_resume: Any) -> Redeployed:
        number, former = vllm.state.replica, vllm.state.version
        self.during.get(number, lambda: None)()
        if number in self.broken:
            before_resume(version)  # it is found out by the last check, when calls go on again
            before_resume(former)
            self.restored.get(number, lambda: None)()
            raise RedeployFailed(f"{version} could not be loaded; {former} serves again", restored=True)
        before_resume(version)
        vllm.state.version, vllm.state.weights = version, str(folder.resolve())
        return Redeployed(version, "policy")

    def bring(self, version: str) -> None:
        services = cast(Services, SimpleNamespace(gateway=self.made.handle, fleet=self.replicas, model=None))
        deploy(Run(self.settings), services, {"policy": version})

    def ask(self, rollout: str, model: str = "policy") -> int:
        """The number of the replica that answered a call of this rollout."""
        before = [len(replica.canned.requests) for replica in self.replicas]
        key = self.made.handle.mint(rollout, "a", "train")
        agent = openai.OpenAI(base_url=self.made.base_url(rollout, "a"), api_key=key, max_retries=0)
        agent.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
        asked = [i for i, replica in enumerate(self.replicas) if len(replica.canned.requests) > before[i]]
        assert len(asked) == 1
        return asked[0]

    def route(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.made.handle.routes()["policies"]["policy"])


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    with rig(tmp_path) as made, ExitStack() as stack:
        made.handle.set_routes({"policies": {}})
        others = [stack.enter_context(made.beside()) for _ in range(2)]
        replicas = [Replica(0, made.upstream, made.canned)]
        replicas += [Replica(number, *other) for number, other in enumerate(others, 1)]
        found = Fleet(made, replicas)
        monkeypatch.setattr(PolicyStore, "checked", lambda store, version: tmp_path / version)
        monkeypatch.setattr(PolicyStore, "set_current", lambda *_: None)
        monkeypatch.setattr(
            PolicyStore, "manifest", lambda store, version: SimpleNamespace(version=version, probe=None)
        )
        monkeypatch.setattr(module, "hot_swap", found.swap)
        found.bring("v0001")
        yield found


def test_one_that_sleeps_is_woken_by_a_deploy_that_has_no_version_for_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = []

    def wake(vllm: Any) -> None:
        if vllm.asleep:
            vllm.asleep = False
            woken.append(vllm.state.replica)

    monkeypatch.setattr(module, "wake", wake)
    fleet.replicas[1].asleep = True
    fleet.bring("v0001")
    assert woken == [1], "it has that version: nothing was trained"

    def damaged(store: PolicyStore, version: str) -> Path:
        raise StoreError("its content is not what was published")

    monkeypatch.setattr(PolicyStore, "checked", damaged)
    fleet.replicas[2].asleep = True
    with pytest.raises(StoreError):
        fleet.bring("v0002")
    assert woken == [1, 2]


def test_a_replica_that_is_swapped_gets_no_calls_and_each_rollout_sees_one_version(fleet: Fleet) -> None:
    assert fleet.ask("old") in (0, 1, 2)

    def first() -> None:
        assert {fleet.ask(f"early{i}") for i in range(6)} <= {1, 2}

    def second() -> None:
        assert [fleet.ask("new"), fleet.ask("old")] == [0, 2]
        assert fleet.route()["version"] == "v0002" and set(fleet.route()["loaded"]) == {"v0001"}

    def third() -> None:
        # The last one with the former version: from here on its rollouts go on with the new one.
        assert {fleet.ask("old"), fleet.ask("new")} <= {0, 1}

    fleet.during = {0: first, 1: second, 2: third}
    fleet.bring("v0002")
    assert fleet.route()["loaded"] == {}
    assert [fleet.route()["upstream"], *fleet.route()["replicas"]] == [r.upstream for r in fleet.replicas]


def test_a_replica_that_misses_a_swap_gets_no_calls_until_it_has_the_version(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    asked: set[int] = set()
    fleet.broken, fleet.restored = {1}, {1: lambda: asked.update(fleet.ask(f"meanwhile{i}") for i in range(4))}
    fleet.bring("v0002")
    assert asked == {0}, "replica 1 goes on with v0001"
    assert "replica 1 of vLLM missed a version" in caplog.text
    assert [fleet.route()["upstream"], *fleet.route()["replicas"]] == [fleet.replicas[n].upstream for n in (0, 2)]
    assert {fleet.ask(f"r{i}") for i in range(8)} <= {0, 2}
    fleet.broken = set()
    fleet.bring("v0002")
    assert [r.state.version for r in fleet.replicas] == ["v0002"] * 3
    assert len(fleet.route()["replicas"]) == 2


def test_where_the_first_replica_fails_nothing_is_changed(fleet: Fleet) -> None:
    before = fleet.route()
    fleet.broken = {0}
    with pytest.raises(RedeployFailed, match="v0001 serves again"):
        fleet.bring("v0002")
    assert fleet.route() == before
    assert [r.state.version for r in fleet.replicas] == ["v0001"] * 3


def test_a_replica_that_missed_a_version_gets_none_of_its_calls_while_the_next_is_rolled(fleet: Fleet) -> None:
    fleet.broken = {1}
    fleet.bring("v0002")
    assert fleet.ask("old") in (0, 2)

    def first() -> None:
        assert {fleet.ask(f"early{i}") for i in range(6)} == {2}, "replica 1 has v0001 still"

    def second() -> None:
        assert {fleet.ask("old"), fleet.ask("other", "policy@v0002")} == {2} and fleet.ask("new") == 0

    fleet.broken, fleet.during = set(), {0: first, 1: second}
    fleet.bring("v0003")
    assert {r.state.version for r in fleet.replicas} == {"v0003"} and len(fleet.route()["replicas"]) == 2


def test_a_version_of_the_same_number_of_another_policy_is_not_taken_for_ours(fleet: Fleet) -> None:
    for replica in fleet.replicas:
        replica.state.weights = "policies/other/v0001"
    swapped: list[int] = []
    fleet.during = {number: (lambda number=number: swapped.append(number)) for number in range(3)}  # type: ignore[misc]
    fleet.bring("v0001")
    assert swapped == [0, 1, 2]


def test_a_first_deploy_that_fails_leaves_no_route_to_what_is_not_served(fleet: Fleet) -> None:
    fleet.made.handle.set_routes({"policies": {}})
    fleet.broken = {0}
    with pytest.raises(RedeployFailed, match="v0001 serves again"):
        fleet.bring("v0002")
    assert fleet.made.handle.routes()["policies"] == {}
