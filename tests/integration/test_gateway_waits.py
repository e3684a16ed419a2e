"""Calls to a vLLM that is gone: they wait where a supervisor starts it again, and fail soon where nobody does."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from lightning_core.epoch.services import _let_calls_fail
from lightning_core.gateway.upstream import RETRY_DELAYS_S
from tests.canned_vllm import CannedVllm
from tests.gateway_rig import Rig, last, rig, wait_for

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as found:
        yield found


def ask(made: Rig, rollout: str) -> str | None:
    agent = openai.OpenAI(
        base_url=made.base_url(rollout, "a"), api_key=made.handle.mint(rollout, "a", "train"), max_retries=0
    )
    return agent.chat.completions.create(model="policy", messages=MESSAGES).choices[0].message.content


def test_calls_wait_longer_than_they_are_tried_again_for_a_vllm_that_comes_back(made: Rig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        socket, back = Path(folder) / "s", CannedVllm()
        made.route(upstream=f"unix://{socket}", restart_wait_s=60)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(ask, made, f"r{number}") for number in range(4)]
            threading.Event().wait(sum(RETRY_DELAYS_S) + 1)
            assert not any(call.done() for call in calls)
            made.on_loop(back.start(str(socket)))
            assert [call.result() for call in calls] == ["Hello world"] * 4
        made.on_loop(back.stop())


def test_they_do_not_wait_where_nobody_starts_it_again(made: Rig) -> None:
    made.route(upstream="unix:///nowhere/s", restart_wait_s=3600)
    _let_calls_fail(made.handle)
    assert made.handle.routes()["policies"]["policy"]["restart_wait_s"] == 0
    with pytest.raises(openai.InternalServerError, match=r"/nowhere/s .*\(5 tries\)"):
        ask(made, "r")


@pytest.mark.extra
def test_a_call_that_outlasts_a_stopping_server_leaves_a_span_that_says_so(tmp_path: Path) -> None:
    with rig(tmp_path) as made, ThreadPoolExecutor(1) as pool:
        made.gate()
        call = pool.submit(ask, made, "r")
        wait_for(lambda: made.canned.requests)
        made.handle.stop()  # it waits for its calls, but not for ever
        assert call.exception() is not None
        assert made.spans()[-1].status.message == "the gateway stopped"
        assert last(made)["lightning.untrainable"] == "aborted"
