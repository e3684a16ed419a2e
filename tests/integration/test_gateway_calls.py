"""OpenAI's own client against the real server process: the client notices nothing, the spool has everything."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lightning_core import names
from tests.canned_vllm import PROMPT_IDS, TEXT, TOKENS
from tests.gateway_rig import Rig, attributes, client, float32, int32, last, rig, wait_for

MESSAGES: Any = [{"role": "user", "content": "hi"}]
IDS = [token[0] for token in TOKENS]
LOGPROBS = [token[2] for token in TOKENS]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture
def server(running: Rig) -> Rig:
    canned = running.canned
    canned.requests.clear()
    canned.fail_next.clear()
    canned.gate, canned.break_after, canned.cancelled = None, None, 0
    running.route()
    return running


def test_a_call_leaves_its_token_ids_in_the_spool_and_none_in_the_reply(server: Rig) -> None:
    raw = client(server).chat.completions.with_raw_response.create(model="policy", messages=MESSAGES)
    reply = json.loads(raw.text)
    assert reply["choices"][0]["message"]["content"] == TEXT
    assert reply["model"] == "policy"
    assert reply["prompt_token_ids"] is None and reply["choices"][0]["token_ids"] is None
    assert reply["choices"][0]["logprobs"] is None
    span = last(server)
    assert int32(span[names.PROMPT_TOKEN_IDS]) == PROMPT_IDS
    assert int32(span[names.RESPONSE_TOKEN_IDS]) == IDS
    assert float32(span[names.RESPONSE_LOGPROBS]) == LOGPROBS
    assert span[names.POLICY] == "policy" and span[names.POLICY_VERSION] == "v0003"
    assert span[names.GEN_AI_RESPONSE_ID] == reply["id"]
    assert span[names.GEN_AI_FINISH_REASONS] == ["stop"]
    assert (span[names.GEN_AI_INPUT_TOKENS], span[names.GEN_AI_OUTPUT_TOKENS]) == (4, 4)
    assert json.loads(span[names.GEN_AI_INPUT_MESSAGES]) == MESSAGES
    assert json.loads(span[names.GEN_AI_OUTPUT_MESSAGES]) == [{"role": "assistant", "content": TEXT}]
    assert names.UNTRAINABLE not in span
    record = server.records()[-1]
    assert (record.rollout_id, record.attempt_id, record.scope, record.source) == ("r.1", "a1", "path", "gateway")
    assert server.spans()[-1].name == "chat policy"


def test_a_stream_passes_text_and_usage_as_asked_and_nothing_else(server: Rig) -> None:
    stream = client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hellold"
    assert all(c.choices and c.usage is None and c.model == "policy" for c in chunks)
    # The role chunk and three with text: the control token's chunk exists only for its id.
    assert len(chunks) == 4
    text = json.dumps([c.model_dump() for c in chunks])
    assert not any(word in text for word in ('token_ids": [', "70000", "-0.25"))
    span = last(server)
    assert int32(span[names.PROMPT_TOKEN_IDS]) == PROMPT_IDS
    assert int32(span[names.RESPONSE_TOKEN_IDS]) == IDS and float32(span[names.RESPONSE_LOGPROBS]) == LOGPROBS
    assert json.loads(span[names.GEN_AI_OUTPUT_MESSAGES]) == [{"role": "assistant", "content": "Hellold"}]
    assert span[names.GEN_AI_OUTPUT_TOKENS] == 4 and span[names.FIRST_TOKEN_MS] > 0


def test_what_the_client_asks_for_it_gets(server: Rig) -> None:
    options: Any = {"model": "policy", "messages": MESSAGES, "logprobs": True}
    extra: Any = {"return_token_ids": True}
    reply = client(server).chat.completions.create(**options, extra_body=extra)
    assert reply.choices[0].logprobs is not None and reply.model_extra["prompt_token_ids"] == PROMPT_IDS
    chunks = list(
        client(server).chat.completions.create(
            **options, extra_body=extra, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4
    assert [i for c in chunks if c.choices for i in (c.choices[0].model_extra or {}).get("token_ids") or []] == IDS


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_that_is_not_wanted_is_kept_from_the_client_and_not_from_the_span(server: Rig, stream: bool) -> None:
    server.canned.said = {"reasoning": "12 * 7"}
    request = {"model": "policy", "messages": MESSAGES, "stream": stream, "include_reasoning": False}
    headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
    answer = httpx.post(server.base_url() + "/chat/completions", json=request, headers=headers)
    server.canned.said = {}
    assert answer.status_code == 200 and "12 * 7" not in answer.text
    span = last(server)
    assert int32(span[names.RESPONSE_TOKEN_IDS]) == IDS and names.UNTRAINABLE not in span
    assert json.loads(span[names.GEN_AI_OUTPUT_MESSAGES])[0]["reasoning"] == "12 * 7"


def test_a_streams_last_chunk_has_the_fingerprint_that_came_with_the_usage(server: Rig) -> None:
    chunks = list(client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True))
    assert [chunk.system_fingerprint for chunk in chunks] == [None] * (len(chunks) - 1) + ["fp"]


def test_legacy_completions_work_whole_and_streamed(server: Rig) -> None:
    whole = client(server).completions.create(model="policy", prompt="hi")
    assert whole.choices[0].text == TEXT and whole.choices[0].logprobs is None
    assert (whole.choices[0].model_extra or {})["prompt_token_ids"] is None
    assert int32(last(server)[names.PROMPT_TOKEN_IDS]) == PROMPT_IDS
    streamed = client(server).completions.create(model="policy", prompt="hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == TEXT
    assert float32(last(server)[names.RESPONSE_LOGPROBS]) == LOGPROBS


def test_several_choices_keep_their_lengths(server: Rig) -> None:
    reply = client(server).chat.completions.create(model="policy", messages=MESSAGES, n=2)
    assert len(reply.choices) == 2
    span = last(server)
    assert int32(span[names.CHOICE_LENGTHS]) == [4, 4]
    assert int32(span[names.RESPONSE_TOKEN_IDS]) == IDS * 2


def test_training_samples_as_the_policy_does_and_says_what_was_asked(server: Rig) -> None:
    server.route(sampling={"temperature": 0.9, "top_p": 1.0, "max_tokens": 50})
    client(server).chat.completions.create(
        model="policy", messages=MESSAGES, temperature=0, top_p=0.5, max_tokens=100, seed=1, extra_body={"top_k": 5}
    )
    sent = server.canned.requests[-1]
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["max_tokens"]) == (0.9, 1.0, 0, 50)
    assert sent["model"] == "policy-v0003" and "seed" not in sent
    span = last(server)
    assert json.loads(span[names.REQUESTED_SAMPLING])["temperature"] == 0
    assert json.loads(span[names.SAMPLING])["temperature"] == 0.9
    assert names.UNTRAINABLE not in span


def test_evaluation_keeps_the_agents_sampling_within_the_limit(server: Rig) -> None:
    server.route(evaluate_max_tokens=20)
    client(server, mode="evaluate").chat.completions.create(model="policy", messages=MESSAGES, temperature=0, top_p=0.5)
    sent = server.canned.requests[-1]
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0, 0.5, 20) and "top_k" not in sent
    assert last(server)[names.UNTRAINABLE] == "greedy"


def test_the_span_has_the_tools_that_the_call_was_offered(server: Rig) -> None:
    tools: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    client(server).chat.completions.create(model="policy", messages=MESSAGES, tools=tools)
    assert json.loads(last(server)[names.GEN_AI_TOOLS]) == tools
    client(server).chat.completions.create(model="policy", messages=MESSAGES)
    assert names.GEN_AI_TOOLS not in last(server)


def test_the_incoming_traceparent_is_the_spans_parent(server: Rig) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client(server).chat.completions.create(model="policy", messages=MESSAGES, extra_headers={"traceparent": parent})
    span = server.spans()[-1]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (parent[3:35], parent[36:52])


def test_chunks_pass_at_once_and_the_span_is_durable_before_the_last(server: Rig) -> None:
    server.gate()
    before = len(server.records())
    stream = iter(client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True))
    next(stream)
    assert next(stream).choices[0].delta.content == "Hello"  # the upstream still waits behind the gate
    assert len(server.records()) == before
    server.open()
    for chunk in stream:
        if chunk.choices[0].finish_reason:
            assert len(server.records()) == before + 1


def test_many_calls_at_once_through_the_async_client(server: Rig) -> None:
    async def main() -> None:
        token = server.handle.mint("r.1", "many", "train")
        async with openai.AsyncOpenAI(base_url=server.base_url("r.1", "many"), api_key=token) as many:

            async def one(i: int) -> None:
                message: Any = [{"role": "user", "content": f"n{i}"}]
                if i % 2:
                    stream = await many.chat.completions.create(model="policy", messages=message, stream=True)
                    assert [chunk async for chunk in stream]
                else:
                    assert (await many.chat.completions.create(model="policy", messages=message)).choices

            await asyncio.gather(*(one(i) for i in range(60)))

    asyncio.run(main())
    mine = [record for record in server.records() if record.attempt_id == "many"]
    assert len(mine) == 60
    assert server.handle.attempt("r.1", "many")["calls"] == 60


def test_a_version_that_changes_during_a_call_is_recorded_with_the_first(server: Rig) -> None:
    server.gate()
    stream = iter(client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True))
    next(stream)
    server.route(version="v0004")
    server.route(version="v0005")
    server.open()
    list(stream)
    assert last(server)[names.POLICY_VERSION] == "v0003,v0004,v0005"


def test_a_client_that_leaves_cancels_the_upstream_and_leaves_an_aborted_span(server: Rig) -> None:
    server.gate()
    before = len(server.records())
    for stream in (True, False):
        with pytest.raises(openai.APITimeoutError):
            list(client(server, timeout=0.5).chat.completions.create(model="policy", messages=MESSAGES, stream=stream))
    wait_for(lambda: server.canned.cancelled == 2 and len(server.records()) == before + 2)
    for span in server.spans()[-2:]:
        assert span.status.code == span.status.STATUS_CODE_ERROR
        assert attributes(span)[names.UNTRAINABLE] == "aborted"
    assert int32(attributes(server.spans()[-2])[names.RESPONSE_TOKEN_IDS]) == IDS[:1]


def test_an_error_of_the_request_keeps_its_shape_and_leaves_a_span(server: Rig) -> None:
    server.canned.fail_next = [400]
    with pytest.raises(openai.BadRequestError, match="context is 8 tokens") as caught:
        client(server, attempt="bad").chat.completions.create(model="policy", messages=MESSAGES)
    assert caught.value.param == "messages"
    span = server.spans()[-1]
    assert "context is 8 tokens" in span.status.message and attributes(span)[names.UNTRAINABLE] == "failed"
    assert server.handle.attempt("r.1", "bad")["infrastructure_errors"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_comes_as_a_success_is_a_failure_and_says_what_came(server: Rig, stream: bool) -> None:
    server.canned.instead = b'{"error": {"message": "no credits left", "code": 402}}'
    try:
        with pytest.raises(openai.APIError, match="no credits left"):
            list(
                client(server, attempt="200").chat.completions.create(model="policy", messages=MESSAGES, stream=stream)
            )
    finally:
        server.canned.instead = None
    span = server.spans()[-1]
    assert span.status.code == span.status.STATUS_CODE_ERROR and "no credits left" in span.status.message


def test_a_short_outage_of_vllm_is_not_noticed(server: Rig) -> None:
    server.canned.fail_next = ["drop", 503]
    assert client(server, attempt="short").chat.completions.create(model="policy", messages=MESSAGES).choices
    seen = server.handle.attempt("r.1", "short")
    assert 0 < seen.pop("up_s") < time.monotonic()
    assert seen == {
        "calls": 1,
        "tokens": 8,
        "infrastructure_errors": 0,
        "last_error": None,
        "unanswered": 0,
        "refused_otlp": 0,
        "refused": {},
        "rejected_spans": 0,
    }


@pytest.mark.parametrize("failures", [[503] * 5, [500] * 5, [404]])
def test_a_failure_of_vllm_is_503_and_counted_for_the_attempt(server: Rig, failures: list[int | str]) -> None:
    attempt = f"down{failures[0]}"
    server.canned.fail_next = list(failures)
    with pytest.raises(openai.InternalServerError) as caught:
        client(server, attempt=attempt).chat.completions.create(model="policy", messages=MESSAGES, stream=True)
    assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]
    assert caught.value.body["type"] == "server_error"  # type: ignore[index]
    seen = server.handle.attempt("r.1", attempt)
    assert seen["infrastructure_errors"] == 1 and str(failures[0]) in seen["last_error"]
    assert server.records()[-1].attempt_id == attempt


def test_a_call_that_failed_and_was_answered_when_asked_again_is_no_loss_to_the_agent(server: Rig) -> None:
    def ask(attempt: str, retries: int = 0, text: str = "hi") -> None:
        messages: Any = [{"role": "user", "content": text}]
        client(server, attempt=attempt, retries=retries).chat.completions.create(model="policy", messages=messages)

    server.canned.fail_next = [404]
    ask("again", retries=1)
    seen = server.handle.attempt("r.1", "again")
    assert (seen["infrastructure_errors"], seen["unanswered"]) == (1, 0)
    server.canned.fail_next = [404]
    with pytest.raises(openai.InternalServerError):
        ask("lost")
    ask("lost", text="something else")
    assert server.handle.attempt("r.1", "lost")["unanswered"] == 1


def test_a_client_that_leaves_while_vllm_is_waited_for_was_failed_by_the_infrastructure(server: Rig) -> None:
    server.canned.fail_next = [503] * 4
    with pytest.raises(openai.APITimeoutError):
        client(server, attempt="left", timeout=0.5).chat.completions.create(model="policy", messages=MESSAGES)
    wait_for(lambda: server.handle.attempt("r.1", "left")["unanswered"] == 1)
    server.canned.fail_next = []


@pytest.mark.parametrize("after_s", [0, 30])
def test_a_stream_is_complete_with_done_however_its_connection_ends(server: Rig, after_s: float) -> None:
    delta = {"index": 0, "delta": {"role": "assistant", "content": "a"}, "token_ids": [5], "finish_reason": "stop"}
    events = b"data: " + json.dumps({"id": "x", "choices": [delta]}).encode() + b"\n\ndata: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"%x\r\n" % len(events) + events + b"\r\n")
        await writer.drain()
        await asyncio.wait([asyncio.ensure_future(reader.read())], timeout=after_s)  # no last chunk comes
        writer.close()

    listening = server.on_loop(asyncio.start_server(answer, "127.0.0.1", 0))
    server.route(upstream=f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    began = time.monotonic()
    chunks = list(client(server).chat.completions.create(model="policy", messages=MESSAGES, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["a"] and time.monotonic() - began < 20
    assert server.spans()[-1].status.code == server.spans()[-1].status.STATUS_CODE_OK
    server.loop.call_soon_threadsafe(listening.close)


def test_a_stream_that_breaks_upstream_is_an_error_for_the_client_and_aborted(server: Rig) -> None:
    server.canned.break_after = 2
    with pytest.raises(openai.APIError):
        list(client(server, attempt="torn").chat.completions.create(model="policy", messages=MESSAGES, stream=True))
    assert last(server)[names.UNTRAINABLE] == "aborted"
    assert server.handle.attempt("r.1", "torn")["infrastructure_errors"] == 1


def test_an_unknown_model_is_openais_404_with_the_names(server: Rig) -> None:
    with pytest.raises(openai.NotFoundError, match="policy") as caught:
        client(server).chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert [model.id for model in client(server).models.list()] == ["policy", "policy@v0003"]


def test_only_the_attempts_own_token_opens_its_scope(server: Rig) -> None:
    for key in ("nonsense", server.handle.mint("r.1", "other", "train"), "lf-x.y"):
        stranger = openai.OpenAI(base_url=server.base_url(), api_key=key, max_retries=0)
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.chat.completions.create(model="policy", messages=MESSAGES)
        assert caught.value.code == "invalid_api_key"
    without_prefix = openai.OpenAI(
        base_url=server.handle.url + "/v1", api_key=server.handle.mint("r.2", "b", "train"), max_retries=0
    )
    without_prefix.chat.completions.create(model="policy", messages=MESSAGES)
    record = server.records()[-1]
    assert (record.rollout_id, record.attempt_id, record.scope) == ("r.2", "b", "token")


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/pause", "/collective_rpc", "/v1/audio/speech", "/tokenize", "/v1/responses/x/y"]
)
def test_nothing_else_is_served_or_forwarded(server: Rig, path: str) -> None:
    token = server.handle.mint("r.1", "a1", "train")
    for base in (server.handle.url, server.handle.attempt_url("r.1", "a1")):
        answer = httpx.post(base + path, json={}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 404 and "error" in answer.json()
    assert server.canned.requests == []


@pytest.mark.parametrize(
    ("body", "word"),
    [(b"{", "JSON"), (b"[]", "object"), (b'{"messages": []}', "model"), (b'{"model": "policy"}', "messages")],
)
def test_a_malformed_request_is_400_that_says_what_is_missing(server: Rig, body: bytes, word: str) -> None:
    headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
    answer = httpx.post(server.base_url() + "/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400 and word in answer.json()["error"]["message"]
    wrong = httpx.get(server.base_url() + "/chat/completions", headers=headers)
    assert wrong.status_code == 405 and "error" in wrong.json()


def test_a_unix_socket_serves_as_upstream(tmp_path: Path) -> None:
    with rig(tmp_path, unix=True) as made:
        assert client(made).chat.completions.create(model="policy", messages=MESSAGES).choices
        assert last(made)[names.POLICY_VERSION] == "v0003"
