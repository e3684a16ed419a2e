"""What model servers answer wrong, or not at all: the right error, a span, and no task, socket or memory left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_core import names
from tests.any_json import values
from tests.gateway_rig import Rig, attributes, client, left_quiet, rig, wait_for

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture
def server(running: Rig) -> Iterator[Rig]:
    with left_quiet(running):
        yield running


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as made:
        yield made


replied = st.sampled_from(
    [
        *("id", "model", "choices", "usage", "prompt_token_ids", "token_ids", "logprobs", "message", "delta", "text"),
        *("finish_reason", "index", "content", "tool_calls", "reasoning", "function", "error", "system_fingerprint"),
    ]
)
ids = st.lists(st.integers(-1, 2**33), max_size=3)
replies = st.recursive(
    values | ids,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(replied, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=100)
@given(
    reply=st.dictionaries(replied, replies, max_size=6),
    choice=st.dictionaries(replied, replies, max_size=6),
    path=st.sampled_from(["chat/completions", "completions", "responses"]),
    stream=st.booleans(),
)
def test_no_reply_of_any_shape_is_a_fault_of_ours(
    server: Rig, http: httpx.Client, reply: dict[str, Any], choice: dict[str, Any], path: str, stream: bool
) -> None:
    answer = answered(server, http, json.dumps({"choices": [choice]} | reply), path, stream)
    assert answer.status_code in (200, 503), answer.text
    ends = (
        b"[DONE]" in answer.content
        or b"response.completed" in answer.content
        or b"response.incomplete" in answer.content
    )
    assert not stream or ends or b'"error"' in answer.content


def answered(server: Rig, http: httpx.Client, reply: str, path: str, stream: bool) -> httpx.Response:
    """What the client gets for this reply of the model server's; the call has left its span."""
    server.canned.instead = reply.encode()
    before = len(server.records())
    try:
        asked = {
            "chat/completions": {"messages": MESSAGES},
            "completions": {"prompt": "x"},
            "responses": {"input": "x"},
        }
        body = {"model": "policy", "stream": stream} | asked[path]
        headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
        answer = http.post(f"{server.base_url()}/{path}", json=body, headers=headers)
    finally:
        server.canned.instead = None
    assert len(server.records()) == before + 1
    return answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "responses"])
@pytest.mark.parametrize("deep", [{"thoughts": "DEEP"}, {"tool_calls": [{"index": 0, "more": "DEEP"}]}])
def test_a_reply_that_is_nested_too_deeply_to_be_written_is_a_broken_one(
    server: Rig, http: httpx.Client, deep: dict[str, Any], path: str, stream: bool
) -> None:
    message = {"role": "assistant", "content": "x"} | deep
    choice = {"index": 0, "delta" if stream else "message": message, "finish_reason": "stop"}
    reply = json.dumps({"choices": [choice]}).replace('"DEEP"', "[" * 300 + "]" * 300)
    answer = answered(server, http, reply, path, stream)
    assert answer.status_code == (200 if stream else 503) and b"Recursion" in answer.content
    assert attributes(server.spans()[-1])[names.UNTRAINABLE] == "aborted"


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 0, "delta": {"tool_calls": [{"index": -1}]}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0}, {"index": -1}]}},
        {"index": 0, "delta": {"tool_calls": [{"index": 10**7}]}},
        {"index": 10**6, "delta": {"content": "x"}},
        {"index": 0, "delta": {"content": "x" * 20_000_000}},
    ],
)
def test_a_reply_that_takes_memory_for_nothing_is_a_broken_stream_and_a_span(server: Rig, choice: Any) -> None:
    server.canned.instead = json.dumps({"choices": [choice]}).encode()
    before = len(server.records())
    try:
        with pytest.raises(openai.APIError, match="broke"):
            list(client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True))
    finally:
        server.canned.instead = None
    assert len(server.records()) == before + 1


def test_an_upstream_that_breaks_in_mid_stream_is_an_error_once_and_never_tried_again(server: Rig) -> None:
    server.canned.break_after = 2
    for _ in range(3):
        with pytest.raises(openai.APIError):
            list(client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True))
    assert len(server.canned.requests) == 3
    assert attributes(server.spans()[-1])[names.UNTRAINABLE] == "aborted"


def test_an_upstream_that_breaks_before_the_first_byte_is_tried_again(server: Rig) -> None:
    server.canned.break_before = 2
    stream = client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hellold"
    assert len(server.canned.requests) == 3


def test_an_upstream_that_dies_under_many_streams_leaves_a_span_for_each(server: Rig) -> None:
    server.gate()
    before = len(server.records())

    def one(_: int) -> str:
        try:
            return str(
                len(list(client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True)))
            )
        except openai.APIError as error:
            return type(error).__name__

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(one, n) for n in range(8)]
        wait_for(lambda: len(server.canned.requests) == 8)
        time.sleep(0.3)
        server.on_loop(server.canned.stop())
        assert [call.result() for call in calls] == ["APIError"] * 8
    server.on_loop(server.canned.start())
    wait_for(lambda: len(server.records()) == before + 8)
    assert all(span.status.code == span.status.STATUS_CODE_ERROR for span in server.spans()[-8:])
    server.canned.gate = None
    assert client(server).chat.completions.create(model="policy", messages=MESSAGES).choices
