"""The parts of the gateway that need no process: tokens, what is sent on, what is taken off the reply."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_core import names
from lightning_core.errors import LightningError
from lightning_core.gateway.access import Caller
from lightning_core.gateway.api_format import ApiFormat
from lightning_core.gateway.attempt_tokens import AttemptScope, mint, verify
from lightning_core.gateway.call_span import Asked, Outcome, encode_call, new_id, parse_traceparent
from lightning_core.gateway.handle import GatewayError, GatewayHandle
from lightning_core.gateway.http import HttpError, read_body
from lightning_core.gateway.prompts import Served
from lightning_core.gateway.reply import Collected, take_chunk, take_reply
from lightning_core.gateway.room import OWN_SHARE, Room, Turns
from lightning_core.gateway.routes import Route, RoutesError, RouteTable, parse_routes
from lightning_core.gateway.sampling import Kind, Prepared, prepare
from lightning_core.gateway.service_files import load_secret
from lightning_core.gateway.targets import Target
from tests.gateway_rig import attributes, spans_of
from tests.standin_server import standin

ROUTE = Route(upstream="http://127.0.0.1:1", model="served", version="v0003")
CHAT: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}


def chat(mode: Any = "train", route: Route = ROUTE, **changes: Any) -> Prepared:
    return prepare(CHAT | changes, "chat", route, mode, "served")


def test_a_token_opens_its_attempt_and_survives_a_restart(tmp_path: Path) -> None:
    token = mint(load_secret(tmp_path), "default.0003.t17.2", "ab12", "evaluate")
    assert verify(load_secret(tmp_path), token) == AttemptScope("default.0003.t17.2", "ab12", "evaluate")
    assert (tmp_path / "services" / "secret").stat().st_mode & 0o777 == 0o600


def test_a_token_of_another_server_or_changed_by_a_letter_opens_nothing(tmp_path: Path) -> None:
    secret = load_secret(tmp_path)
    token = mint(secret, "r", "a", "train")
    assert verify("0" * 64, token) is None
    for i in range(3, len(token) - 1):  # the last letter holds spare bits
        changed = token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :]
        assert verify(secret, changed) is None
    for junk in ("", "lf-", "lf-.", "lf-é.é", "sk-x", token.replace(".", "")):
        assert verify(secret, junk) is None


def test_spans_that_the_gateway_refuses_are_an_error_for_people(tmp_path: Path) -> None:
    load_secret(tmp_path)
    with standin() as server:
        server.fail = [(413, {})]
        with pytest.raises(GatewayError, match=r"the gateway at .* took no spans: .*413"):
            GatewayHandle(tmp_path, server.url, 1).post(b"")


def test_an_empty_secret_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    load_secret(tmp_path)
    (tmp_path / "services" / "secret").write_text("")
    with pytest.raises(LightningError, match="remove the file"):
        load_secret(tmp_path)


def test_training_writes_out_neutral_values_so_that_no_generation_config_fills_them() -> None:
    body = chat(temperature=0, frequency_penalty=1, logit_bias={"1": 5}, min_tokens=4, bad_words=["x"]).body
    assert {key: body[key] for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert body["frequency_penalty"] == body["presence_penalty"] == 0
    assert not body.keys() & {"logit_bias", "min_tokens", "bad_words", "seed"}


@pytest.mark.parametrize(
    ("asked", "limit", "sent"),
    [
        ({}, None, (None, None)),
        ({}, 50, (50, None)),
        ({"max_tokens": 20}, 50, (20, None)),
        ({"max_tokens": 90}, 50, (50, None)),
        ({"max_completion_tokens": 90}, 50, (None, 50)),
        ({"max_tokens": 90, "max_completion_tokens": 10}, 50, (50, 10)),
        ({"max_tokens": 90}, None, (90, None)),
        ({"max_tokens": 20.0}, 50, (20, None)),
        ({"max_completion_tokens": "90"}, 50, (None, 50)),
        ({"max_tokens": "many"}, 50, ("many", None)),
    ],
)
@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_a_token_limit_is_lowered_never_raised(mode: str, asked: Any, limit: Any, sent: Any) -> None:
    route = Route.model_validate(ROUTE.model_dump() | {"sampling": {"max_tokens": limit}, "evaluate_max_tokens": limit})
    body = chat(mode, route, **asked).body
    assert (body.get("max_tokens"), body.get("max_completion_tokens")) == sent


def test_a_completion_without_a_limit_keeps_its_sixteen_tokens() -> None:
    route = ROUTE.model_copy(update={"evaluate_max_tokens": 50})
    assert prepare({"prompt": "x"}, "completions", route, "evaluate", "served").body["max_tokens"] == 16


def test_what_reaches_into_the_model_server_is_not_passed_on() -> None:
    body = chat("evaluate", request_id="mine", kv_transfer_params={"a": 1}, priority=9).body
    assert not body.keys() & {"request_id", "kv_transfer_params", "priority"}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}


@pytest.mark.parametrize(
    ("mode", "changes", "reason"),
    [
        ("train", {}, None),
        ("train", {"temperature": 0}, None),
        ("evaluate", {"temperature": 0}, "greedy"),
        ("evaluate", {"temperature": 1e-7}, "greedy"),
        ("evaluate", {"temperature": 0.7}, None),
        ("train", {"response_format": {"type": "json_object"}}, "guided"),
        ("train", {"response_format": {"type": "text"}}, None),
        ("train", {"structured_outputs": {"regex": "a"}}, "guided"),
        ("train", {"guided_choice": ["a"]}, "guided"),
        ("train", {"tools": [TOOL], "tool_choice": "required"}, "forced_tool"),
        ("train", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "forced_tool"),
        ("train", {"tools": [TOOL], "tool_choice": "auto"}, None),
        ("train", {"tools": [TOOL], "parallel_tool_calls": False}, "guided"),
        ("evaluate", {"tools": [TOOL]}, "guided"),
        ("train", {"continue_final_message": True}, "prefilled"),
        ("train", {"use_beam_search": True}, None),
        ("evaluate", {"use_beam_search": True}, "beam_search"),
    ],
)
def test_calls_that_are_no_plain_sample_of_the_policy_say_why(mode: str, changes: Any, reason: str | None) -> None:
    assert chat(mode, **changes).untrainable == reason


def test_strict_tools_are_not_held_to_a_grammar_in_training_only() -> None:
    assert chat(tools=[TOOL]).body["tools"][0]["function"] == {"name": "f", "parameters": {}}
    assert chat("evaluate", tools=[TOOL]).body["tools"] == [TOOL]
    assert TOOL["function"]["strict"] is True  # type: ignore[index]


def test_several_prompts_in_one_completion_cannot_be_trained_on() -> None:
    prepared = prepare({"prompt": ["a", "b"], "n": 2}, "completions", ROUTE, "train", "served")
    assert (prepared.untrainable, prepared.choices) == ("several_prompts", 4)
    assert prepare({"prompt": [1, 2]}, "completions", ROUTE, "train", "served").choices == 1


def test_a_streamed_tool_call_is_put_together() -> None:
    prepared, into = chat(stream=True), Collected()
    for part in (
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "calc", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": " 1}"}},
        {"index": 1, "id": "c2", "function": {"name": "calc", "arguments": "{}"}},
    ):
        take_chunk({"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]}, prepared, "policy", into)
    calls = into.ordered()[0].message["tool_calls"]
    assert [call["id"] for call in calls] == ["c1", "c2"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": 1}


def test_a_chunk_with_a_finish_reason_is_never_held_from_the_client() -> None:
    prepared = chat(stream=True)
    raw = {"choices": [{"index": 0, "delta": {}, "token_ids": [2], "finish_reason": "stop"}]}
    assert take_chunk(raw, prepared, "policy", Collected()) is not None


def test_usage_in_every_chunk_stays_where_it_was_asked_for() -> None:
    prepared = chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert prepared.body["stream_options"]["continuous_usage_stats"] is True
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"prompt_tokens": 1}}
    taken = take_chunk(chunk, prepared, "policy", Collected())
    assert taken is not None and taken["usage"] == {"prompt_tokens": 1}


@pytest.mark.parametrize(
    ("chunk", "error"),
    [
        ({"error": {"message": "overloaded", "code": 503}}, "overloaded"),
        ({"error": "overloaded", "choices": []}, "overloaded"),
        ({"error": {}}, "{}"),
        ({"error": None, "choices": [], "usage": {"prompt_tokens": 1}}, None),
        ({"error": None, "choices": [{"index": 0, "delta": {"content": "a"}}]}, None),
    ],
)
def test_an_error_in_a_stream_is_told_from_an_error_field_without_one(chunk: dict[str, Any], error: str | None) -> None:
    into = Collected()
    prepared = chat(stream=True, stream_options={"include_usage": True})
    taken = take_chunk(chunk, prepared, "policy", into)
    assert (into.error, taken is None) == (error, error is not None)


def encoded(kind: Kind, reply: dict[str, Any], **request: Any) -> dict[str, Any]:
    prepared, into = prepare(request, kind, ROUTE, "train", "served"), Collected()
    take_reply(reply, prepared, "policy", into)
    target = Target("policy", "policy", "served", ("http://x",), None, "", ROUTE, "policy", "v0003")
    caller, served = Caller("r", "a", "train", "path"), Served(request, [])
    asked = Asked(caller, target, request, prepared, ApiFormat("chat"), served)
    body = encode_call(asked, into, None, Outcome("v0003", start_ns=1, end_ns=2))
    return attributes(spans_of(body)[0])


def test_an_echoed_prompt_has_no_logprobs_among_the_responses() -> None:
    choice = {"index": 0, "text": "p r", "token_ids": [5, 6], "prompt_token_ids": [1], "finish_reason": "length"}
    choice["logprobs"] = {"token_logprobs": [None, -1.0, -2.0]}
    span = encoded("completions", {"choices": [choice]}, prompt="p", logprobs=1)
    assert len(span[names.RESPONSE_LOGPROBS]) == 8 and names.UNTRAINABLE not in span


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"token_ids": [5], "logprobs": {"content": [{"logprob": -1}]}}, None),
        ({"token_ids": [5], "logprobs": {"content": [{"logprob": -1}]}, "finish_reason": "abort"}, "aborted"),
        ({"logprobs": {"content": [{"logprob": -1}]}}, "missing_ids"),
        ({"token_ids": [], "logprobs": None}, "missing_ids"),
        ({"token_ids": [5, 6], "logprobs": {"content": [{"logprob": -1}]}}, "missing_logprobs"),
        ({"token_ids": [5], "logprobs": None}, "missing_logprobs"),
    ],
)
def test_a_reply_that_lacks_what_training_needs_says_so(choice: dict[str, Any], reason: str | None) -> None:
    reply = {"prompt_token_ids": [1], "choices": [{"index": 0, "message": {}, "finish_reason": "stop"} | choice]}
    assert encoded("chat", reply, **CHAT).get(names.UNTRAINABLE) == reason


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "junk",
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"ff-{'a' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'b' * 16}-01-more",
    ],
)
def test_a_traceparent_that_is_not_valid_starts_a_new_trace(header: str | None) -> None:
    assert parse_traceparent(header) is None


def test_span_ids_do_not_repeat_when_an_agent_seeds_random() -> None:
    import random

    random.seed(1)
    first = new_id(8)
    random.seed(1)
    assert first != new_id(8)


def test_routes_that_cannot_be_used_name_the_key() -> None:
    policy = {"upstream": "127.0.0.1:80", "model": "m", "version": "v0003"}
    with pytest.raises(RoutesError, match=r"policies\.p\.upstream.*unix:///"):
        parse_routes(json.dumps({"policies": {"p": policy}}).encode())
    with pytest.raises(RoutesError, match="version"):
        parse_routes(json.dumps({"policies": {"p": policy | {"upstream": "http://x", "version": "3"}}}).encode())
    for nowhere in ("http://x:99999", "http://[::1", "http://:80", f"http://{'x' * 64}.org", "http://"):
        with pytest.raises(RoutesError, match="upstream"):
            parse_routes(json.dumps({"policies": {"p": policy | {"upstream": nowhere}}}).encode())
    with pytest.raises(RoutesError):
        parse_routes(b"{")


def test_routes_survive_a_restart_and_a_broken_file_is_named(tmp_path: Path) -> None:
    RouteTable(tmp_path).replace(parse_routes(json.dumps({"policies": {"policy": ROUTE.model_dump()}}).encode()))
    assert RouteTable(tmp_path).current.policies["policy"] == ROUTE
    (tmp_path / "services" / "routes.json").write_text("{}x")
    with pytest.raises(RoutesError, match=r"routes\.json"):
        RouteTable(tmp_path)


@pytest.mark.parametrize("pause_s", [60, 0.001])
def test_a_body_that_does_not_come_in_time_is_408_and_ends_the_connection(pause_s: float) -> None:
    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        return {
            "type": "http.request",
            "body": b"",
            "more_body": True,
        }  # a client that lives, and gives hardly anything

    with pytest.raises(HttpError) as caught:
        asyncio.run(read_body({"type": "http", "headers": []}, receive, 100, within_s=0.05))
    assert caught.value.status == 408 and caught.value.headers == {"Connection": "close"}


SECRET = Caller(None, None, "evaluate", "none", "secret")


def test_room_for_bodies_is_given_back_also_when_a_request_fails() -> None:
    room = Room(100)
    with pytest.raises(HttpError) as refused, room.holding(SECRET) as take:
        take(60)
        with room.holding(SECRET) as another:
            another(41)
    assert refused.value.status == 503 and refused.value.headers["Retry-After"]
    for _ in range(2):
        with room.holding(SECRET) as take:
            take(100)


def test_a_sender_has_a_quarter_of_the_room_and_attempts_are_senders_of_their_own() -> None:
    room = Room(100)
    attempts = [Caller("r", name, "train", "path") for name in "abcd"]
    nobody = Caller(None, None, "evaluate", "none", "nobody")
    with contextlib.ExitStack() as stack:
        for caller in attempts[:3]:
            stack.enter_context(room.holding(caller))(25)
            with pytest.raises(HttpError) as refused, room.holding(caller) as take:
                take(1)
            assert refused.value.code == OWN_SHARE
        stack.enter_context(room.holding(nobody))(20)
        with room.holding(attempts[3]) as take:
            with pytest.raises(HttpError) as full:
                take(6)
            assert full.value.code == "service_unavailable"
            take(5)
    for caller in (*attempts, nobody):
        with room.holding(caller) as take:
            take(25)


def test_messages_are_read_in_turns_and_nobody_has_them_all() -> None:
    async def main() -> list[str]:
        turns, read, done = Turns(2), [], asyncio.Event()

        async def reading(name: str, last: asyncio.Event) -> None:
            async with turns.turn(Caller("r", name, "train", "token")):
                read.append(name)
                await last.wait()

        tasks = [asyncio.create_task(reading(name, done)) for name in ("slow", "slow", "quick", "third")]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        seen = list(read)
        done.set()
        await asyncio.gather(*tasks)
        return seen

    assert asyncio.run(main()) == ["slow", "quick"]


def test_a_body_takes_room_as_it_comes_in() -> None:
    parts = [{"type": "http.request", "body": b"x" * 40, "more_body": more} for more in (True, True, False)]

    async def receive() -> Any:
        return parts.pop(0)

    scope: Any = {"type": "http", "headers": []}
    room = Room(100)
    with pytest.raises(HttpError) as refused, room.holding(SECRET) as take:
        asyncio.run(read_body(scope, receive, 1_000, take))
    assert refused.value.status == 503
    parts = [{"type": "http.request", "body": b"x" * 40, "more_body": more} for more in (True, False)]
    with room.holding(SECRET) as take:
        assert asyncio.run(read_body(scope, receive, 1_000, take)) == b"x" * 80
