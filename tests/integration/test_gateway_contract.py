"""The same requests through the gateway and straight to the upstream: the replies are the same, field by field.

The upstream is the canned one, in vLLM's shapes; tests/integration/test_vllm.py does it with the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.gateway_rig import Rig, rig


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as made:
        yield made


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
tool = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": st.just("f"), "parameters": st.just({})})}
)
options = st.fixed_dictionaries(
    {"stream": st.booleans()},
    optional={
        "n": st.integers(1, 3),
        "return_token_ids": st.booleans(),
        "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.1, 1),
        "max_tokens": st.integers(1, 100),
        "stop": st.lists(text, max_size=2),
        "seed": st.integers(0, 9),
        "user": text,
        "a field nobody knows": text,
    },
)
chats = st.builds(
    lambda common, own: common | own,
    options,
    st.fixed_dictionaries(
        {
            "messages": st.lists(
                st.fixed_dictionaries({"role": st.just("user"), "content": text}), min_size=1, max_size=3
            )
        },
        optional={
            "logprobs": st.booleans(),
            "top_logprobs": st.integers(0, 2),
            "tools": st.lists(tool, max_size=2),
            "include_reasoning": st.booleans(),
        },
    ),
)
completions = st.builds(
    lambda common, own: common | own,
    options,
    st.fixed_dictionaries(
        {"prompt": text | st.lists(st.integers(0, 99), min_size=1)}, optional={"logprobs": st.integers(0, 2)}
    ),
)


def events(answer: httpx.Response) -> list[Any]:
    lines = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def both(server: Rig, http: httpx.Client, path: str, request: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """(what the gateway gave, what the upstream gives), an object or the events of a stream."""
    found = []
    for mode in ("evaluate", "train"):
        key = server.handle.mint("r.1", "a1", mode)
        headers = {"Authorization": f"Bearer {key}"}
        answer = http.post(server.base_url() + path, json=request | {"model": "policy"}, headers=headers)
        assert answer.status_code == 200, answer.text
        found.append(events(answer) if request["stream"] else [answer.json()])
    assert found[0] == found[1]
    direct = http.post(f"{server.upstream}/v1{path}", json=request | {"model": "policy"})
    return found[0], events(direct) if request["stream"] else [direct.json()]


common = settings(max_examples=40)


@common
@given(request=chats, said=st.sampled_from([{}, {"reasoning": "12 * 7"}]))
def test_chat_is_the_upstreams_field_by_field(
    server: Rig, http: httpx.Client, request: dict[str, Any], said: dict[str, Any]
) -> None:
    server.canned.said = said
    through, direct = both(server, http, "/chat/completions", request)
    assert through == direct
    for reply in through:
        (ChatCompletionChunk if request["stream"] else ChatCompletion).model_validate(reply)


@common
@given(request=completions)
def test_completions_are_the_upstreams_field_by_field(server: Rig, http: httpx.Client, request: dict[str, Any]) -> None:
    through, direct = both(server, http, "/completions", request)
    assert through == direct
    if not request["stream"]:  # OpenAI's type has no chunk without a finish reason
        Completion.model_validate(through[0])
