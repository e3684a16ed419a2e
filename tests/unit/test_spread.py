"""What is spread over a cluster: settings that cannot work, rollouts that are begun once, work that is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench import scale
from lightning_core.checks import machine
from lightning_core.config import ClusterSettings, Settings
from lightning_core.gateway.admin import Claims
from lightning_core.policies.vllm_command import environment
from lightning_flows.tasks import cluster


def settings(**more: Any) -> Settings:
    return Settings.model_validate({"agent": {"command": "true"}, "tasks": {"train": "t.jsonl"}} | more)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"workers": 2}, "`engine: threads` has no address"),
        ({"engine": "threads", "address": "tcp://head:8786"}, "set `engine: ray` or `engine: dask`"),
        ({"engine": "dask", "address": "tcp://head:8786", "workers": 2}, "leave `workers` out"),
        ({"engine": "dask", "address": "tcp://head:8786"}, "set `gateway.host` to an address"),
        ({"engine": "ray", "address": "ray://10.0.0.2:10001"}, "set `gateway.host` to an address"),
    ],
)
def test_a_cluster_that_cannot_work_is_an_error_that_names_the_remedy(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(cluster=section)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", ""])
def test_a_gateway_that_only_this_machine_finds_is_none_for_workers_elsewhere(host: str) -> None:
    with pytest.raises(ValidationError, match=r"set `gateway\.host` to an address"):
        settings(cluster={"engine": "dask", "address": "tcp://10.0.0.2:8786"}, gateway={"host": host})


def test_a_cluster_on_this_machine_reaches_a_server_on_loopback() -> None:
    assert not settings(cluster={"engine": "dask", "address": "tcp://127.0.0.1:8786"}).cluster.elsewhere
    assert settings(cluster={"engine": "dask", "address": "head:8786"}, gateway={"host": "10.0.0.1"}).cluster.elsewhere


def test_workers_elsewhere_need_a_prefect_server_that_they_reach() -> None:
    pytest.importorskip("prefect_dask")
    elsewhere = ClusterSettings(engine="dask", address="tcp://10.0.0.2:8786")
    for api in (None, "http://127.0.0.1:4200/api"):
        found = machine.check_cluster(elsewhere, api)
        assert found.level == "error" and "PREFECT_API_URL" in found.found
    assert machine.check_cluster(elsewhere, "http://10.0.0.1:4200/api").level == "ok"


def test_an_engine_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    found = machine.check_cluster(ClusterSettings(engine="ray"), None)
    assert found.level == "error"
    assert "prefect-ray is not installed; `pip install 'lightning-flows[scale]'`" in found.found


def test_a_rollout_is_granted_once_and_to_the_newest_collection_alone() -> None:
    claims = Claims()
    assert not claims.grant("run/train/0", "a", "r1"), "a server that was started again knows none"
    claims.begin("run/train/0", "a")
    assert claims.grant("run/train/0", "a", "r1") and not claims.grant("run/train/0", "a", "r1")
    claims.begin("run/train/0", "b")
    assert not claims.grant("run/train/0", "a", "r2")
    assert claims.grant("run/train/0", "b", "r1")


class Runner:
    """Loses what it is asked to lose, a number of times."""

    def __init__(self, losses: dict[int, int]) -> None:
        self.losses = losses
        self.submitted: list[int] = []

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        number = parameters["number"]
        self.submitted.append(number)
        future: Future[Any] = Future()
        if self.losses.get(number, 0) > 0:
            self.losses[number] -= 1
            future.set_exception(RuntimeError("the worker died"))
        else:
            future.set_result(State(number))
        return Wrapped(future)


class Wrapped:
    def __init__(self, future: Future[Any]) -> None:
        self.wrapped_future = future


class State:
    def __init__(self, value: int) -> None:
        self.value = value

    def result(self, **_: Any) -> int:
        return self.value


class Task:
    name = "work"


def numbers(count: int) -> Iterator[dict[str, int]]:
    return ({"number": number} for number in range(count))


def test_what_is_lost_with_a_worker_is_run_again_and_comes_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "logger", lambda: logging.getLogger("flow"))
    runner: Any = Runner({3: 1, 5: 2})
    task: Any = Task()
    assert list(cluster.in_order(runner, task, numbers(30))) == list(range(30))
    assert runner.submitted.count(3) == 2 and runner.submitted.count(5) == 3
    runner = Runner({0: 3})
    with pytest.raises(cluster.WorkerLost, match="the worker died"):
        list(cluster.in_order(runner, task, numbers(1)))


@pytest.mark.parametrize(("error", "said"), [(TimeoutError(), "TimeoutError: "), (OSError("a\nb"), "OSError: a")])
def test_whatever_an_engine_says_of_a_lost_worker_it_is_lost(error: Exception, said: str) -> None:
    future: Future[Any] = Future()
    future.set_exception(error)
    with pytest.raises(cluster.WorkerLost, match=f"^{said}$"):
        cluster.outcome(future)


def test_no_more_than_a_few_are_under_way() -> None:
    runner: Any = Runner({})
    task: Any = Task()
    results = cluster.in_order(runner, task, numbers(100))
    next(results)
    assert len(runner.submitted) <= 10


def test_each_replica_of_vllm_has_the_device_it_is_given() -> None:
    vllm = settings(vllm={"replicas": 2, "devices": ["0,1", "2,3"]}).vllm
    assert [environment(None, vllm.device(replica))["CUDA_VISIBLE_DEVICES"] for replica in (0, 1)] == ["0,1", "2,3"]
    assert settings(vllm={"replicas": 2}).vllm.device(1) is None
    with pytest.raises(ValidationError, match="give each replica its own"):
        settings(vllm={"replicas": 2, "devices": ["0"]})


def test_the_plan_of_the_docs_is_the_one_that_is_computed() -> None:
    one, _, many = scale.PLANS
    small, large = (
        [f"{scale.epoch_s(scale.seconds(n, plan, scale.Costs()), plan):,.0f}" for plan in scale.PLANS]
        for n in (1_000, 10_000)
    )
    told = "{} s on 1 GPU, {} s on 8 and {} s on 128; one of 10,000 takes {}, {} and {} s".format(*small, *large)
    assert f"An epoch of 1,000 rollouts then takes {told}." in (Path(__file__).parents[2] / "docs/scale.md").read_text()
    parts = scale.seconds(10_000, many, scale.Costs())
    assert scale.epoch_s(parts, many) < scale.epoch_s(parts, one)
    assert parts["generate"] < scale.seconds(10_000, one, scale.Costs())["generate"] / 60
