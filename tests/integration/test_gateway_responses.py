"""The Responses API of OpenAI's own client against the real server process; upstream is chat, so tokens are exact."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_core import names
from tests.canned_vllm import PROMPT_IDS, TEXT, TOKENS
from tests.gateway_rig import Rig, client, float32, int32, last, rig

IDS = [token[0] for token in TOKENS]
TOOL: Any = {
    "type": "function",
    "name": "calc",
    "description": "computes",
    "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    "strict": True,
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "calc", "arguments": '{"x": "12*7"}'}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture
def server(running: Rig) -> Rig:
    running.canned.requests.clear()
    running.canned.fail_next.clear()
    running.canned.said, running.canned.break_after = {}, None
    return running


@pytest.fixture(scope="module")
def http(running: Rig) -> Iterator[httpx.Client]:
    headers = {"Authorization": "Bearer " + running.handle.mint("r.1", "a1", "train")}
    with httpx.Client(base_url=running.base_url(), headers=headers, timeout=30) as made:
        yield made


def test_a_response_is_openais_and_its_span_has_the_tokens(server: Rig) -> None:
    reply = client(server).responses.create(model="policy", instructions="be kind", input="hi", max_output_tokens=50)
    assert reply.output_text == TEXT and reply.status == "completed" and reply.model == "policy"
    assert reply.id.startswith("resp_") and reply.instructions == "be kind"
    assert reply.usage is not None and (reply.usage.input_tokens, reply.usage.output_tokens) == (4, 4)
    assert "token_ids" not in reply.model_dump_json()
    sent = server.canned.requests[-1]
    assert sent["messages"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert sent["max_completion_tokens"] == 50 and "input" not in sent and "store" not in sent
    span = last(server)
    assert int32(span[names.PROMPT_TOKEN_IDS]) == PROMPT_IDS and int32(span[names.RESPONSE_TOKEN_IDS]) == IDS
    assert float32(span[names.RESPONSE_LOGPROBS]) == [token[2] for token in TOKENS]
    assert (span[names.GEN_AI_RESPONSE_ID], span[names.UPSTREAM_ID]) == (reply.id, "chatcmpl-canned")
    assert span[names.API] == "responses" and names.UNTRAINABLE not in span
    assert json.loads(span[names.GEN_AI_INPUT_MESSAGES]) == sent["messages"]


def test_a_stream_has_openais_typed_events_in_order(server: Rig) -> None:
    stream = client(server).responses.create(model="policy", input="hi", stream=True)
    events = list(stream)
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 2,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hellold"
    final: Any = events[-1]
    assert final.response.output_text == "Hellold" and final.response.usage.output_tokens == 4
    span = last(server)
    assert span[names.GEN_AI_RESPONSE_ID] == final.response.id and int32(span[names.RESPONSE_TOKEN_IDS]) == IDS
    assert span[names.FIRST_TOKEN_MS] > 0


def test_the_clients_own_stream_helper_puts_the_same_response_together(server: Rig) -> None:
    server.canned.said = {"reasoning": "twelve times seven", "tool_calls": [CALL, CALL | {"id": "call_2"}]}
    with client(server).responses.stream(model="policy", input="12*7?", tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.reasoning_text.delta" in kinds and "response.function_call_arguments.done" in kinds
    assert [item.type for item in final.output] == ["reasoning", "function_call", "function_call"]
    calls: list[Any] = final.output[1:]
    assert [call.call_id for call in calls] == ["call_1", "call_2"]
    assert json.loads(calls[1].arguments) == {"x": "12*7"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_its_output_go_back_as_one_sampled_message(server: Rig, stream: bool) -> None:
    server.canned.said = {"reasoning": "hm", "tool_calls": [CALL]}
    talk = client(server)
    asked: Any = {"model": "policy", "tools": [TOOL], "instructions": "use tools"}
    if stream:
        events: list[Any] = list(talk.responses.create(**asked, input="12*7?", stream=True))
        first = events[-1].response
    else:
        first = talk.responses.create(**asked, input="12*7?")
    sent = server.canned.requests[-1]["tools"][0]
    assert sent["function"]["name"] == "calc" and "strict" not in sent["function"]  # training: no grammar
    call = first.output[-1]
    assert call.type == "function_call" and call.call_id == "call_1" and call.arguments == '{"x": "12*7"}'
    result: Any = {"type": "function_call_output", "call_id": "call_1", "output": "84"}
    server.canned.said = {}
    assistant = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [CALL]}
    tool = {"role": "tool", "tool_call_id": "call_1", "content": "84"}
    wanted = [{"role": "system", "content": "use tools"}, {"role": "user", "content": "12*7?"}, assistant, tool]
    # What the client kept itself, and what the server kept for it, are the same conversation.
    history: Any = [{"role": "user", "content": "12*7?"}, *(item.model_dump() for item in first.output), result]
    talk.responses.create(**asked, input=history)
    assert server.canned.requests[-1]["messages"] == wanted
    second = talk.responses.create(**asked, input=[result], previous_response_id=first.id)
    assert server.canned.requests[-1]["messages"] == wanted
    assert second.previous_response_id == first.id and second.output_text == TEXT


def test_a_conversation_opens_for_its_own_attempt_only_and_survives_a_restart(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        first = client(made).responses.create(model="policy", input="one")
        second = client(made).responses.create(model="policy", input="two", previous_response_id=first.id)
        made.handle.stop()
        made.start()
        talk = client(made)
        talk.responses.create(model="policy", input="three", previous_response_id=second.id, instructions="new")
        roles = [(m["role"], m["content"]) for m in made.canned.requests[-1]["messages"]]
        wanted = [("system", "new"), ("user", "one"), ("assistant", TEXT), ("user", "two"), ("assistant", TEXT)]
        assert roles == [*wanted, ("user", "three")]
        assert talk.responses.retrieve(first.id).output_text == TEXT
        for other, wrong in ((client(made, attempt="b9"), first.id), (talk, "resp_x")):
            with pytest.raises(openai.NotFoundError) as caught:
                other.responses.create(model="policy", input="x", previous_response_id=wrong)
            assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"
        talk.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            talk.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):  # a chain without its beginning is no conversation
            talk.responses.create(model="policy", input="x", previous_response_id=second.id)


def test_responses_that_cannot_be_stored_are_a_failure_of_the_infrastructure(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        with contextlib.closing(sqlite3.connect(tmp_path / "services" / "responses.sqlite")) as file:
            file.execute("DROP TABLE responses_2")
        talk = client(made)
        with pytest.raises(openai.InternalServerError, match="stored responses") as caught:
            talk.responses.create(model="policy", input="hi")
        assert caught.value.status_code == 503
        with pytest.raises(openai.APIError, match="stored responses"):
            list(talk.responses.create(model="policy", input="hi", stream=True))
        assert made.handle.attempt("r.1", "a1")["infrastructure_errors"] == 2
        assert talk.responses.create(model="policy", input="hi", store=False).output_text == "Hello world"


def test_a_response_that_must_not_be_stored_is_not(server: Rig) -> None:
    reply = client(server).responses.create(model="policy", input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client(server).responses.retrieve(reply.id)


def test_a_stored_response_has_the_items_of_its_input_in_pages(server: Rig) -> None:
    talk = client(server)
    given: Any = [
        {"role": "user", "content": "12*7?"},
        {"type": "function_call", "call_id": "call_1", "name": "calc", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "84"},
        {"role": "assistant", "content": "84"},
    ]
    reply = talk.responses.create(model="policy", input=given)
    items: list[Any] = list(
        talk.responses.input_items.list(reply.id, order="asc", limit=3)
    )  # asks for the second page too
    assert [item.type for item in items] == ["message", "function_call", "function_call_output", "message"]
    assert items[0].content[0].text == "12*7?" and items[2].output == "84" and items[3].content[0].text == "84"
    newest = talk.responses.input_items.list(reply.id, limit=1)
    assert newest.data[0].id == items[3].id and newest.has_more
    text = talk.responses.create(model="policy", input="hi", previous_response_id=reply.id)
    asked: list[Any] = list(talk.responses.input_items.list(text.id))
    assert [item.content[0].text for item in asked] == ["hi"]
    with pytest.raises(openai.NotFoundError):
        client(server, attempt="b9").responses.input_items.list(reply.id)
    for wrong in ({"limit": 0}, {"after": "msg_x"}):
        with pytest.raises(openai.BadRequestError):
            talk.responses.input_items.list(reply.id, **wrong)


def test_a_response_that_is_done_cannot_be_cancelled_or_streamed_again(server: Rig) -> None:
    talk = client(server)
    reply = talk.responses.create(model="policy", input="hi")
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        talk.responses.cancel(reply.id)
    with pytest.raises(openai.BadRequestError):
        talk.responses.retrieve(reply.id, stream=True)
    with pytest.raises(openai.NotFoundError):
        talk.responses.cancel("resp_x")


def test_a_schema_a_forced_tool_and_logprobs_go_upstream_as_chat_has_them(server: Rig) -> None:
    schema = {"type": "object", "properties": {}}
    text: Any = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
    reply = client(server).responses.create(
        model="policy", input="hi", text=text, include=["message.output_text.logprobs"], top_logprobs=2
    )
    sent = server.canned.requests[-1]
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    assert sent["response_format"] == wanted and sent["top_logprobs"] == 2
    part: Any = reply.output[0].content[0]  # type: ignore[union-attr, index]
    assert [entry.logprob for entry in part.logprobs] == [token[2] for token in TOKENS]
    assert last(server)[names.UNTRAINABLE] == "guided"
    client(server).responses.create(
        model="policy", input="hi", tools=[TOOL], tool_choice={"type": "function", "name": "calc"}
    )
    assert server.canned.requests[-1]["tool_choice"] == {"type": "function", "function": {"name": "calc"}}
    assert last(server)[names.UNTRAINABLE] == "forced_tool"


def test_a_stream_that_breaks_upstream_raises_in_the_client_and_is_not_stored(server: Rig) -> None:
    server.canned.break_after = 2
    with pytest.raises(openai.APIError):
        list(client(server).responses.create(model="policy", input="hi", stream=True))
    assert last(server)[names.UNTRAINABLE] == "aborted"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"previous_response_id": 7}, "previous_response_id"),
    ],
)
def test_what_chat_cannot_say_is_refused_by_name_and_never_left_out(server: Rig, changes: Any, param: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client(server).responses.create(**({"model": "policy", "input": "hi"} | changes))
    assert caught.value.status_code in (400, 404) and caught.value.param == param
    assert server.canned.requests == []


keys = st.sampled_from(
    [
        *("type", "role", "content", "summary", "output", "call_id", "name", "arguments", "text", "refusal", "id"),
        *("image_url", "detail", "input_audio", "format", "schema", "effort", "parameters"),
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=8,
)
kinds = st.sampled_from(
    [
        *("message", "reasoning", "function_call", "function_call_output", "function", "input_text", "output_text"),
        *("input_image", "input_audio", "json_schema", "user", "assistant"),
    ]
)
items = st.dictionaries(keys, values | kinds | st.lists(st.dictionaries(keys, values | kinds, max_size=4), max_size=2))


@settings(max_examples=200)
@given(
    given_=st.lists(st.builds(lambda kind, item: {"type": kind} | item, kinds, items), max_size=3),
    more=st.dictionaries(
        st.sampled_from(["tools", "tool_choice", "text", "reasoning", "include"]),
        values | items | st.lists(items, max_size=2),
    ),
)
def test_no_item_of_any_shape_is_a_fault_of_ours(server: Rig, http: httpx.Client, given_: Any, more: Any) -> None:
    body = json.dumps({"model": "policy", "input": given_} | more).encode()
    answer = http.post("/responses", content=body)
    assert answer.status_code in (200, 400), answer.text
    assert answer.status_code == 200 or answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "reasoning", "summary": 7}, "input[0].summary"),
        ({"type": "reasoning", "content": 7}, "input[0].content"),
        ({"type": "reasoning", "summary": [7]}, "input[0].summary[0]"),
        ({"type": "message", "role": "assistant", "content": {"a": 1}}, "input[0].content"),
    ],
)
def test_an_items_field_of_another_type_is_named(server: Rig, item: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client(server).responses.create(model="policy", input=[item])
    assert caught.value.param == param and param in caught.value.message


@pytest.mark.parametrize("limit", ["9" * 5000, "0", "101", "-1", "1.5", "x", "\u0663", "1" * 19, "%C2%B2"])
def test_a_limit_that_is_none_is_400_and_named(server: Rig, http: httpx.Client, limit: str) -> None:
    made = client(server).responses.create(model="policy", input="hi")
    answer = http.get(f"/responses/{made.id}/input_items?limit={limit}")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "limit"
    assert "`limit` has to be 1 to 100" in answer.json()["error"]["message"]
