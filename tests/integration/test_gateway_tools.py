"""A real vLLM with a real tool parser: the parser rewrites the text, the span keeps what was sampled.

The demo's model does not call tools of itself, so a grammar makes it write hermes' markup (evaluation keeps an agent's grammar);
which numbers it writes is sampled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lightning_core import names
from lightning_core.config import GatewaySettings, VllmSettings
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.policies.model import ModelError, resolve_model
from lightning_core.policies.vllm import VllmServer
from lightning_core.spool import spool
from tests.gateway_rig import attributes, float32, int32, spans_of

pytestmark = [pytest.mark.slow, pytest.mark.extra]

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PARSER = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
MESSAGES: Any = [{"role": "user", "content": "What is twelve times seven?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "calc",
            "description": "computes",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    }
]
ONE_CALL = r'<tool_call>\n\{"name": "calc", "arguments": \{"expression": "[0-9]{1,3}\*[0-9]{1,3}"\}\}\n</tool_call>'


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return resolve_model(MODEL).path
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayHandle]:
    home = tmp_path_factory.mktemp("home")
    settings = VllmSettings(max_model_len=1024, max_num_seqs=4, extra_args=PARSER)
    vllm = VllmServer.start(settings, model, "policy", home=home)
    try:
        handle = GatewayHandle.start(home, GatewaySettings(), home / "logs" / "gateway.log")
        try:
            handle.set_routes(
                {"policies": {"policy": {"upstream": vllm.upstream, "model": "policy", "version": "v0001"}}}
            )
            yield handle
        finally:
            handle.stop()
    finally:
        vllm.stop()


def agent(server: GatewayHandle, mode: Any) -> openai.OpenAI:
    url = server.attempt_url("r.1", "a1") + "/v1"
    return openai.OpenAI(base_url=url, api_key=server.mint("r.1", "a1", mode), max_retries=0)


def ask(server: GatewayHandle, mode: Any, stream: bool, **more: Any) -> tuple[str, list[tuple[str, str]], str | None]:
    """(text, (name, arguments) of each tool call, finish reason) as the client puts them together."""
    asked: Any = {"model": "policy", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 200, **more}
    if not stream:
        choice = agent(server, mode).chat.completions.create(**asked).choices[0]
        calls: list[Any] = list(choice.message.tool_calls or ())
        named = [(call.function.name, call.function.arguments) for call in calls]
        return choice.message.content or "", named, choice.finish_reason
    text, finish, parts = "", None, dict[int, list[str]]()
    for chunk in agent(server, mode).chat.completions.create(**asked, stream=True):
        for one in chunk.choices:
            text, finish = text + (one.delta.content or ""), one.finish_reason or finish
            for call in one.delta.tool_calls or ():
                name, arguments = parts.setdefault(call.index, ["", ""])
                assert call.function is not None
                parts[call.index] = [name + (call.function.name or ""), arguments + (call.function.arguments or "")]
    return text, [(name, arguments) for name, arguments in parts.values()], finish


def last_span(server: GatewayHandle) -> dict[str, Any]:
    *_, (_, _, record) = spool.read(server.home / "spool", 0)
    return attributes(spans_of(record.body)[-1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("calls", [1, 2])
def test_the_ids_of_a_tool_call_are_those_that_were_sampled(
    server: GatewayHandle, model: Path, stream: bool, calls: int
) -> None:
    grammar = {"regex": "Let me see\\.\\n" + "\\n".join([ONE_CALL] * calls)}
    text, called, finish = ask(server, "evaluate", stream, temperature=1.0, extra_body={"structured_outputs": grammar})
    assert [name for name, _ in called] == ["calc"] * calls and finish == "tool_calls" and "Let me see." in text
    span = last_span(server)
    ids = int32(span[names.RESPONSE_TOKEN_IDS])
    from transformers import AutoTokenizer

    raw = AutoTokenizer.from_pretrained(model).decode(ids, skip_special_tokens=True)
    sampled = [json.loads(part.split("</tool_call>")[0]) for part in raw.split("<tool_call>")[1:]]
    assert [(call["name"], call["arguments"]) for call in sampled] == [(n, json.loads(a)) for n, a in called]
    assert len(float32(span[names.RESPONSE_LOGPROBS])) == len(ids) == span[names.GEN_AI_OUTPUT_TOKENS]
    kept = json.loads(span[names.GEN_AI_OUTPUT_MESSAGES])[0]["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in kept] == called
    assert span[names.UNTRAINABLE] == "guided"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_parser_finds_no_call_in_can_be_trained_on(server: GatewayHandle, model: Path, stream: bool) -> None:
    text, called, finish = ask(server, "train", stream)
    span = last_span(server)
    ids = int32(span[names.RESPONSE_TOKEN_IDS])
    from transformers import AutoTokenizer

    raw = AutoTokenizer.from_pretrained(model).decode(ids, skip_special_tokens=True)
    assert called or raw == text
    assert finish in ("stop", "length", "tool_calls") and len(float32(span[names.RESPONSE_LOGPROBS])) == len(ids)
    assert names.UNTRAINABLE not in span and span[names.POLICY_VERSION] == "v0001"
