"""`lightning_core.client.rollout` at the real gateway: what is emitted in a block is of the block's rollout, in threads and tasks too."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from lightning_core import names
from lightning_core.client import DeliveryError, Rollout, delivery, emit_event, emit_reward, open_rollout, rollout, span
from tests.gateway_rig import Rig, attributes, rig, spans_of

SIDE_BY_SIDE = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(autouse=True)
def elsewhere(server: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of a process that knows the gateway and an opener key, and no attempt."""
    for name in [name for name in os.environ if name.startswith(("OTEL_", "LIGHTNING_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(names.ENV_GATEWAY_URL, server.handle.url + "/")
    monkeypatch.setenv(names.ENV_GATEWAY_KEY, server.handle.mint_opener(60))


def recorded(server: Rig, opened: Rollout) -> list[tuple[str, dict[str, Any]]]:
    """(name, attributes) of each span of the rollout, in the order in which they came."""
    bodies = [r.body for r in server.records() if r.rollout_id == opened.rollout_id]
    return [(span.name, attributes(span)) for body in bodies for span in spans_of(body)]


def ended(server: Rig, opened: Rollout) -> dict[str, Any]:
    (name, found) = recorded(server, opened)[-1]
    assert name == names.SPAN_ROLLOUT_ENDED
    return found


def test_a_block_opens_a_rollout_and_ends_it_with_its_output(server: Rig) -> None:
    with rollout(task={"q": 1}, task_id="t", group="g", ttl_s=60) as mine:
        chat = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
        asked = httpx.post(mine.base_url + "/chat/completions", json=chat, headers=mine.otlp_headers)
        assert asked.status_code == 200
        with span("plan"):
            emit_reward(0.5)
        mine.output = ["two", 2]
    opening, call, reward, plan, end = recorded(server, mine)
    assert [opening[0], call[0], reward[0], plan[0], end[0]] == [
        "rollout.opened",
        "chat policy",
        "reward",
        "plan",
        "rollout.ended",
    ]
    assert (opening[1][names.TASK], opening[1][names.TASK_ID], opening[1][names.GROUP_ID]) == ('{"q":1}', "t", "g")
    assert reward[1][names.REWARD] == 0.5
    assert end[1] == {names.OUTPUT: '["two",2]', names.STATUS: "ok"}


def test_an_exception_ends_the_rollout_with_an_error_and_goes_on(server: Rig) -> None:
    with pytest.raises(KeyError), rollout() as mine:
        mine.output = "half"
        raise KeyError("lost")
    assert ended(server, mine) == {names.OUTPUT: '"half"', names.STATUS: "error", names.ERROR: "KeyError: 'lost'"}


def test_what_failed_without_an_exception_can_be_said(server: Rig) -> None:
    with rollout() as mine:
        mine.status, mine.error = "timeout", "no answer within a minute"
    assert ended(server, mine) == {names.STATUS: "timeout", names.ERROR: "no answer within a minute"}


def test_an_output_that_is_no_json_is_kept_as_its_repr(server: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with rollout() as mine:
        mine.output = {1, 2}
    assert ended(server, mine)[names.OUTPUT] == '"{1, 2}"'
    assert "its output is no JSON" in caplog.text


def test_rollouts_side_by_side_in_threads_get_their_own_rewards(server: Rig) -> None:
    together = Barrier(SIDE_BY_SIDE)

    def work(number: int) -> Rollout:
        with rollout(group="threads") as mine:
            together.wait()
            with span("step"):
                emit_reward(number)
            together.wait()
            mine.output = number
        return mine

    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        made = list(threads.map(work, range(SIDE_BY_SIDE)))
    for number, mine in enumerate(made):
        (_, (_, reward), (step, _), (_, end)) = recorded(server, mine)
        assert (reward[names.REWARD], step, end[names.OUTPUT]) == (number, "step", str(number))


def test_rollouts_side_by_side_in_asyncio_tasks_get_their_own_rewards(server: Rig) -> None:
    async def work(number: int, everybody: asyncio.Barrier) -> Rollout:
        with rollout(group="tasks") as mine:
            await everybody.wait()
            with span("step"):
                await asyncio.to_thread(emit_reward, number)
            await everybody.wait()
            emit_event("done")
        return mine

    async def all_of_them() -> list[Rollout]:
        everybody = asyncio.Barrier(SIDE_BY_SIDE)
        return await asyncio.gather(*(work(number, everybody) for number in range(SIDE_BY_SIDE)))

    for number, mine in enumerate(asyncio.run(all_of_them())):
        found = recorded(server, mine)
        assert [name for name, _ in found] == ["rollout.opened", "reward", "step", "done", "rollout.ended"]
        assert found[1][1][names.REWARD] == number


def test_one_rollout_inside_another_is_none_of_its_spans(server: Rig) -> None:
    with rollout() as outer, span("outer step"):
        with rollout() as inner:
            emit_event("inner")
        emit_event("outer")
    assert [name for name, _ in recorded(server, inner)] == ["rollout.opened", "inner", "rollout.ended"]
    assert [name for name, _ in recorded(server, outer)] == ["rollout.opened", "outer", "outer step", "rollout.ended"]
    bodies = [r.body for r in server.records() if r.rollout_id == inner.rollout_id]
    assert [span.parent_span_id for body in bodies for span in spans_of(body)] == [b""] * 3


def test_in_a_process_with_opentelemetry_rewards_still_go_to_the_rollout(
    server: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: TracerProvider(shutdown_on_exit=False))
    with rollout() as mine:
        emit_reward(1)
        with span("step"):
            pass
    assert [name for name, _ in recorded(server, mine)] == ["rollout.opened", "reward", "step", "rollout.ended"]


def test_another_process_works_in_a_rollout_by_its_environment(server: Rig) -> None:
    mine = open_rollout(task="far")
    code = "from lightning_core.client import emit_reward; emit_reward(0.25)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | mine.environment, check=True, timeout=60)
    opening, reward = recorded(server, mine)
    assert (opening[0], reward[1][names.REWARD]) == ("rollout.opened", 0.25)
    proven = dict(item.split("=", 1) for item in mine.environment["OTEL_RESOURCE_ATTRIBUTES"].split(","))
    assert proven == mine.resource


def test_spans_that_could_not_be_sent_in_the_block_are_sent_at_its_end(
    server: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery.time, "sleep", lambda _: None)
    with rollout() as mine:
        with monkeypatch.context() as away:
            away.setattr(delivery, "_post_once", lambda *_: (DeliveryError("away"), None))
            emit_reward(1)
        assert [name for name, _ in recorded(server, mine)] == ["rollout.opened"]
    assert [name for name, _ in recorded(server, mine)] == ["rollout.opened", "reward", "rollout.ended"]


def test_an_end_that_is_not_taken_is_logged_and_breaks_nothing(
    server: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery.time, "sleep", lambda _: None)
    with caplog.at_level(logging.ERROR), rollout() as mine:
        monkeypatch.setattr(delivery, "_post_once", lambda *_: (DeliveryError("away"), None))
    assert f"rollout {mine.rollout_id} could not be ended: away" in caplog.text


def test_what_is_missing_or_refused_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rollout: the task is no JSON"), rollout(task={1, 2}):
        pass
    with pytest.raises(DeliveryError, match=r"/v1/rollouts answered 400: `group` has to be a text"), rollout(group=""):
        pass
    with (
        pytest.raises(DeliveryError, match=r"/v1/rollouts answered 401: this needs an opener key"),
        rollout(key="lfo-x"),
    ):
        pass
    for name in (names.ENV_GATEWAY_KEY, names.ENV_GATEWAY_URL):
        monkeypatch.delenv(name)
        with pytest.raises(ValueError, match=f"set {name}, or give url and key"), rollout():
            pass


def test_it_needs_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import lightning_core.client, json; "
        "print(json.dumps(sorted({n.split('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names))))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == ["lightning_core"]
