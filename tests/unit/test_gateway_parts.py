"""Parts of the gateway that need no process: replicas, targets, the queue, stored responses, media."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from lightning_core.config import GatewaySettings, Settings, UpstreamSettings
from lightning_core.gateway import gateway
from lightning_core.gateway.access import Caller
from lightning_core.gateway.admission import Admission
from lightning_core.gateway.http import HttpError
from lightning_core.gateway.media import check_media, media_urls
from lightning_core.gateway.responses_store import ResponseStore, Turn
from lightning_core.gateway.routes import Frozen, Route, Routes, RouteTable
from lightning_core.gateway.stats import Stats
from lightning_core.gateway.targets import NoKey, Targets
from lightning_core.gateway.upstream import Replicas

CALLER = Caller("r", "a", "train", "path")
USER = {"role": "user", "content": "hi"}
ROUTE = Route(upstream="http://127.0.0.1:1", model="m", version="v0003")


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | more


def test_the_least_loaded_replica_is_first_and_a_rollouts_policy_goes_home() -> None:
    replicas, addresses, whose = Replicas(), ("a", "b", "c"), ("r", "planner")
    replicas.load.update(a=2, b=1)
    assert replicas.order(addresses, whose) == ["c", "b", "a"]
    replicas.answered("a", whose)
    assert replicas.order(addresses, whose) == ["a", "c", "b"] and replicas.order(addresses, ("s", "planner"))[0] == "c"
    replicas.answered("b", ("r", "executor"))
    assert replicas.order(addresses, whose)[0] == "a" and replicas.order(addresses, ("r", "executor"))[0] == "b"
    assert replicas.order(("b", "c"), whose) == ["c", "b"]  # its home is gone


def table(tmp_path: Path, **policies: Route) -> RouteTable:
    made = RouteTable(tmp_path)
    made.replace(Routes(policies=policies))
    return made


def test_a_policy_comes_before_an_upstream_of_its_name_and_settings_refuse_the_two() -> None:
    upstream = {"name": "o", "base_url": "http://x/v1", "models": ["policy"]}
    settings = {"agent": {"command": "x"}, "tasks": {"train": "x"}, "gateway": {"upstreams": [upstream]}}
    with pytest.raises(ValidationError, match="is a policy and a model of an upstream"):
        Settings.model_validate(settings)
    for broken in ("ftp://x", "http://key@x/v1", "http://x/v1?key=1", "x"):
        with pytest.raises(ValidationError, match="base_url"):
            UpstreamSettings.model_validate(upstream | {"base_url": broken})
    with pytest.raises(ValidationError, match="two upstreams serve 'policy'"):
        GatewaySettings.model_validate({"upstreams": [upstream, upstream | {"name": "p"}]})


def test_a_key_is_read_from_the_environment_and_its_lack_is_named(tmp_path: Path) -> None:
    upstream = UpstreamSettings(name="o", base_url="http://x/v1/", api_key_env="K", models=["judge"])
    with pytest.raises(NoKey, match=r"\$K"):
        Targets(table(tmp_path), [upstream], "follow", {})
    with pytest.raises(NoKey, match=r"\$K has a line break"):
        Targets(table(tmp_path), [upstream], "follow", {"K": "secret\n"})
    nowhere = upstream.model_copy(update={"base_url": "http://x:99999/v1"})
    with pytest.raises(ValueError, match="'o': base_url http://x:99999/v1: Port out of range"):
        Targets(table(tmp_path), [nowhere], "follow", {"K": "secret"})
    target = Targets(table(tmp_path), [upstream], "follow", {"K": "secret"}).resolve("judge", CALLER)
    assert (target.addresses, target.api_key, target.policy) == (("http://x/v1",), "secret", None)


def test_versions_of_swapped_weights_add_up_and_those_of_adapters_do_not(tmp_path: Path) -> None:
    routes = table(tmp_path, full=ROUTE, lora=ROUTE.model_copy(update={"model": "lora-v0003"}))
    targets = Targets(routes, [], "follow")
    full, lora = targets.resolve("full", CALLER), targets.resolve("lora", CALLER)
    newer = ROUTE.model_copy(update={"version": "v0004"})
    routes.replace(Routes(policies={"full": newer, "lora": newer.model_copy(update={"model": "lora-v0004"})}))
    assert (targets.versions(full), targets.versions(lora)) == ("v0003,v0004", "v0003")


def test_a_version_of_a_replica_of_its_own_goes_there(tmp_path: Path) -> None:
    loaded: Any = {"v0001": {"model": "m", "upstream": "http://127.0.0.1:9"}, "v0002": {"model": "m2"}}
    route = Route.model_validate(ROUTE.model_dump() | {"loaded": loaded, "replicas": ["http://127.0.0.1:2"]})
    targets = Targets(table(tmp_path, policy=route), [], "follow")
    own = targets.resolve("policy@v0001", CALLER)
    assert own.addresses == ("http://127.0.0.1:9",) and targets.versions(own) == "v0001"
    assert targets.resolve("policy@v0002", CALLER).addresses == ("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert targets.names() == ["policy", "policy@v0001", "policy@v0002", "policy@v0003"]


def test_the_version_is_chosen_after_media_were_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = table(tmp_path, policy=ROUTE)

    async def deployed_meanwhile(*_: Any) -> None:
        routes.replace(Routes(policies={"policy": ROUTE.model_copy(update={"version": "v0004"})}))

    monkeypatch.setattr(gateway, "check_media", deployed_meanwhile)
    made: Any = SimpleNamespace(targets=Targets(routes, [], "follow"), settings=GatewaySettings())
    target = asyncio.run(gateway.Gateway._target(made, CALLER, "chat", {"model": "policy"}))
    assert target.version == "v0004"


def test_a_frozen_model_waits_for_its_vllm_as_the_policies_there_do(tmp_path: Path) -> None:
    routes, route = RouteTable(tmp_path), ROUTE.model_copy(update={"restart_wait_s": 300.0, "api_key": "k"})
    frozen = {name: Frozen(upstream=f"http://127.0.0.1:{port}", model="base") for name, port in (("a", 1), ("b", 2))}
    routes.replace(Routes(policies={"policy": route}, frozen=frozen))
    there, elsewhere = (Targets(routes, [], "follow").resolve(name, CALLER) for name in "ab")
    assert (there.patience_s, there.api_key, there.policy) == (300.0, "k", None)
    assert (elsewhere.patience_s, elsewhere.api_key) == (0.0, None)


def test_however_calls_leave_the_queue_every_place_comes_back() -> None:
    async def main() -> int:
        admission = Admission(GatewaySettings(concurrent_per_rollout=2), Stats())
        running, most = 0, 0

        async def call(n: int) -> None:
            nonlocal running, most
            async with admission.place(CALLER):
                running += 1
                most = max(most, running)
                try:
                    await asyncio.sleep(0.001 * (n % 3))
                finally:
                    running -= 1

        for round_ in range(20):
            tasks = [asyncio.create_task(call(n)) for n in range(12)]
            for number, task in enumerate(tasks):
                if (number + round_) % 3 == 0:
                    await asyncio.sleep(0.0005)
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert not admission._lanes.inside and not admission._lanes._lanes and not admission._in_all
        return most

    assert asyncio.run(main()) == 2


def history(store: ResponseStore, response_id: str) -> list[Any] | None:
    """The messages; what room was taken for them is what they have."""
    taken: list[int] = []
    found = store.history(response_id, CALLER, taken.append)
    if found is None:
        return None
    assert sum(taken) + len(taken) - 1 + len("[]") == len(found)
    return [message for turn in json.loads(found) for message in turn]


@pytest.mark.parametrize("torn", [b"no database at all " * 100, b""])
def test_a_file_of_responses_that_a_crash_left_unreadable_is_begun_anew(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "r.sqlite"
    store = ResponseStore(path)
    store.put(Turn("resp_1", CALLER, None, [USER], []), said("x"), {})
    store.close()
    path.write_bytes(torn)
    store = ResponseStore(path)
    assert history(store, "resp_1") is None
    store.put(Turn("resp_2", CALLER, None, [USER], []), said("y"), {})
    assert history(store, "resp_2") == [USER, said("y")]


def test_the_oldest_responses_are_forgotten_and_a_chain_without_its_beginning_is_unknown(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "s" / "r.sqlite", most_bytes=2000)
    previous = None
    for number in range(20):
        store.put(Turn(f"resp_{number}", CALLER, previous, [USER], []), said("x" * 50), {"id": number})
        previous = f"resp_{number}"
    assert history(store, "resp_19") is None and store.response("resp_0", CALLER) is None
    assert store.response("resp_19", CALLER) == (b'{"id":19}', b"[]")
    store.put(Turn("resp_new", CALLER, None, [USER], []), said("y"), {})
    assert history(store, "resp_new") == [USER, said("y")]
    assert (tmp_path / "s" / "r.sqlite").stat().st_mode & 0o777 == 0o600


PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.7"


@pytest.mark.parametrize(
    ("url", "resolves_to", "allowed"),
    [
        ("https://example.com/a.png", [PUBLIC], True),
        ("https://example.com/a.png", [PUBLIC, PRIVATE], False),
        ("http://rebind.example", ["127.0.0.1"], False),
        ("http://[::1]/", ["::1"], False),
        ("http://x", ["::ffff:10.0.0.1"], False),
        ("http://metadata", ["169.254.169.254"], False),
        ("http://x", ["100.64.0.1"], False),
        ("http://x", ["fd00::1"], False),
        ("http://x", ["::10.0.0.1"], False),
        ("http://x", ["64:ff9b::a9fe:a9fe"], False),
        ("http://x", ["2002:0a00:0001::"], False),
        ("http://x", ["ff02::1"], False),
        ("http://x", ["::ffff:93.184.216.34"], True),
        ("http:///nowhere", [PUBLIC], False),
        ("http://a\\@b/", [PUBLIC], False),
        ("ftp://example.com", [PUBLIC], False),
        ("data:image/png;base64,AAAA", [], True),
    ],
)
def test_public_media_are_those_whose_every_address_is(
    url: str, resolves_to: list[str], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in resolves_to]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    if allowed:
        asyncio.run(check_media(messages, "public"))
        return
    with pytest.raises(HttpError) as caught:
        asyncio.run(check_media(messages, "public"))
    assert caught.value.status == 400


def test_urls_are_found_in_every_shape_of_a_part() -> None:
    content: Any = [
        {"type": "image_url", "image_url": {"url": "a"}},
        {"image_url": "b"},
        {"type": "video_url", "video_url": {"url": "c"}},
        {"type": "text", "text": "http://d"},
        7,
    ]
    assert list(media_urls([{"role": "user", "content": content}, 5, {"role": "tool", "content": content[:1]}])) == [
        *("a", "b", "c"),
        "a",
    ]
    assert list(media_urls("junk")) == []
