"""Budgets, queues, media and metrics, as OpenAI's client meets them at the real server process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lightning_core import names
from tests.canned_vllm import PROMPT_IDS, TEXT
from tests.gateway_rig import Rig, attributes, client, metric, rig, wait_for

MESSAGES: Any = [{"role": "user", "content": "hi"}]
LIMITS: dict[str, Any] = {"calls_per_rollout": 5, "concurrent_per_rollout": 2, "waiting_per_rollout": 2}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home"), **LIMITS) as made:
        yield made


@pytest.fixture
def server(running: Rig) -> Rig:
    running.canned.requests.clear()
    running.canned.gate, running.canned.prompt_ids = None, list(PROMPT_IDS)
    return running


def ask(server: Rig, rollout: str, messages: Any = MESSAGES, **options: Any) -> Any:
    return client(server, rollout, **options).chat.completions.create(model="policy", messages=messages)


def test_a_runaway_agent_is_stopped_at_its_calls_and_not_tried_again(server: Rig) -> None:
    for _ in range(5):
        ask(server, "runaway")
    before = metric(server, 'lightning_requests_total{route="chat",status="429"}')
    with pytest.raises(openai.RateLimitError, match="calls_per_rollout allows 5") as caught:
        ask(server, "runaway", retries=3)
    assert caught.value.code == "rollout_budget_exceeded" and caught.value.type == "rate_limit_error"
    assert metric(server, 'lightning_requests_total{route="chat",status="429"}') == before + 1  # the client obeys
    assert server.handle.attempt("runaway", "a1")["infrastructure_errors"] == 0
    assert len(server.canned.requests) == 5 and ask(server, "another").choices
    refused = [span for span in server.spans() if attributes(span).get(names.ERROR_TYPE) == "rollout_budget_exceeded"]
    for _ in range(3):
        with pytest.raises(openai.RateLimitError):
            ask(server, "runaway")
    assert server.handle.attempt("runaway", "a1")["refused"] == {"rollout_budget_exceeded": 4}
    assert len(server.records()) == 5 + 1 + 1  # one span for all refusals
    span = attributes(refused[0])
    assert (span[names.POLICY], span[names.UNTRAINABLE]) == ("policy", "refused")
    assert refused[0].status.code == refused[0].status.STATUS_CODE_ERROR and "allows 5" in refused[0].status.message
    assert metric(server, 'lightning_calls_turned_away_total{policy="policy",reason="budget"}') >= 1


def test_a_budget_of_tokens_counts_prompts_and_responses(tmp_path: Path) -> None:
    with rig(tmp_path, tokens_per_rollout=16, most_calls=1) as made:
        ask(made, "r")
        ask(made, "r")
        with pytest.raises(openai.RateLimitError, match="16 tokens") as caught:
            ask(made, "r")
        assert caught.value.code == "rollout_budget_exceeded"
        made.gate()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, made, "s")
            wait_for(lambda: len(made.canned.requests) == 3)
            with pytest.raises(openai.InternalServerError, match="most_calls") as full:
                ask(made, "t")
            assert full.value.status_code == 503 and full.value.response.headers["retry-after"] == "1"
            made.open()
            assert first.result().choices


def test_where_the_spool_is_full_nothing_is_sampled_and_no_budget_used(tmp_path: Path) -> None:
    with rig(tmp_path, spool_max_gb=0.000_05) as made:  # 50 kB
        answered = 0
        with pytest.raises(openai.InternalServerError, match="spool is full"):
            for _ in range(100):
                ask(made, "r")
                answered += 1
        with pytest.raises(openai.InternalServerError, match="spool is full"):
            ask(made, "r")
        seen = made.handle.attempt("r", "a1")
        assert 5 < answered == len(made.canned.requests) == seen["calls"] and seen["infrastructure_errors"] == 2
        assert metric(made, 'lightning_calls_turned_away_total{policy="policy",reason="spool"}') == 2


def test_a_rollouts_calls_queue_in_order_and_past_the_queue_they_are_told_when_to_come_again(server: Rig) -> None:
    server.gate()
    with ThreadPoolExecutor(4) as pool:
        begun = []
        for n in range(4):
            messages = [{"role": "user", "content": f"n{n}"}]
            begun.append(pool.submit(ask, server, "queue", messages))
            wait_for(lambda n=n: server.handle.attempt("queue", "a1")["calls"] == n + 1)  # type: ignore[misc]
        wait_for(lambda: metric(server, "lightning_calls_waiting") == 2)
        with pytest.raises(openai.RateLimitError, match="2 wait") as caught:
            ask(server, "queue")
        assert caught.value.code == "rollout_queue_full" and caught.value.response.headers["retry-after"] == "1"
        assert ask_elsewhere(server) == 3  # another rollout does not wait behind this one
        server.open()
        assert all(call.result().choices for call in begun)
    said = [request["messages"][0]["content"] for request in server.canned.requests]
    assert sorted(said[:2]) == ["n0", "n1"] and said[-2:] == ["n2", "n3"]
    assert metric(server, "lightning_calls_waiting") == 0 and metric(server, "lightning_calls_in_flight") == 0


def ask_elsewhere(server: Rig) -> int:
    """Begin a call of another rollout behind the gate, and leave it: how many calls are upstream then."""
    with pytest.raises(openai.APITimeoutError):
        ask(server, "elsewhere", timeout=0.5)
    return len(server.canned.requests)


def test_a_call_that_leaves_the_queue_leaves_no_place_taken(server: Rig) -> None:
    server.gate()
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(ask, server, "left") for _ in range(2)]
        wait_for(lambda: len(server.canned.requests) == 2)
        with pytest.raises(openai.APITimeoutError):
            ask(server, "left", timeout=0.4)
        wait_for(lambda: metric(server, "lightning_calls_waiting") == 0)
        assert attributes(server.spans()[-1])[names.UNTRAINABLE] == "aborted" and len(server.canned.requests) == 2
        server.open()
        assert all(call.result().choices for call in begun)
    assert ask(server, "left").choices and metric(server, "lightning_calls_in_flight") == 0


def test_what_is_refused_before_it_begins_is_a_span_of_the_attempt(server: Rig) -> None:
    before = len(server.records())
    agent = client(server, "refused", default_headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    image: Any = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}}
    for _ in range(2):
        with pytest.raises(openai.NotFoundError):
            agent.chat.completions.create(model="gpt-4", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError):
            agent.chat.completions.create(model="policy", messages=[{"role": "user", "content": [image]}])
        with pytest.raises(openai.NotFoundError):
            agent.responses.create(model="policy", input="more", previous_response_id="resp_unknown")
        with pytest.raises(openai.NotFoundError):
            agent.embeddings.create(model="policy", input="x")
    found = [(record.rollout_id, record.scope) for record in server.records()[before:]]
    assert found == [("refused", "path")] * 3
    spans = [attributes(span) for span in server.spans()[before:]]
    codes = [(span[names.ERROR_TYPE], span[names.GEN_AI_REQUEST_MODEL], span.get(names.POLICY)) for span in spans]
    assert codes == [
        ("model_not_found", "gpt-4", None),
        ("invalid_image_url", "policy", "policy"),
        ("previous_response_not_found", "policy", "policy"),
    ]
    assert {span.parent_span_id for span in server.spans()[before:]} == {bytes.fromhex("cd" * 8)}
    counts = {"model_not_found": 4, "invalid_image_url": 2, "previous_response_not_found": 2}
    assert server.handle.attempt("refused", "a1")["refused"] == counts and server.canned.requests == []


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "https://example.com/a.png", "file:///etc/passwd", "HTTP://x", " data:x"]
)
def test_media_that_vllm_would_fetch_are_refused(server: Rig, url: str) -> None:
    for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "video_url", "video_url": url}):
        with pytest.raises(openai.BadRequestError, match="data: URL") as caught:
            ask(server, "ssrf", [{"role": "user", "content": [part]}])
        assert caught.value.code == "invalid_image_url"
    with pytest.raises(openai.BadRequestError, match="data: URL"):
        image: Any = {"type": "input_image", "image_url": url, "detail": "auto"}
        client(server, "ssrf").responses.create(model="policy", input=[{"role": "user", "content": [image]}])
    assert server.canned.requests == []
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert ask(server, "ssrf", [{"role": "user", "content": [image]}]).choices
    assert server.canned.requests[-1]["messages"][0]["content"] == [image]


@pytest.mark.parametrize("n", [129, 2**70, "4000", 1e9])
def test_more_choices_than_a_request_may_have_are_refused_before_anything_is_sampled(server: Rig, n: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"`n` is \d+; .* at most 128") as caught:
        client(server, "wide").chat.completions.create(model="policy", messages=MESSAGES, n=n)
    assert caught.value.param == "n" and not server.canned.requests
    assert len(client(server, "wide").chat.completions.create(model="policy", messages=MESSAGES, n=128).choices) == 128


def test_metrics_tell_calls_tokens_latencies_and_the_queue(server: Rig) -> None:
    ask(server, "metrics")
    list(client(server, "metrics").chat.completions.create(model="policy", messages=MESSAGES, stream=True))
    text = httpx.get(server.handle.url + "/metrics").text
    for name in (
        'lightning_calls_total{outcome="ok",policy="policy"}',
        'lightning_tokens_total{kind="prompt",policy="policy"}',
        'lightning_call_seconds_count{policy="policy"}',
        'lightning_first_token_seconds_count{policy="policy"}',
        "lightning_calls_waiting",
    ):
        assert any(line.startswith(name) for line in text.splitlines()), name


def test_the_async_client_shares_the_queue(server: Rig) -> None:
    async def main() -> list[Any]:
        token = server.handle.mint("async", "a1", "train")
        async with openai.AsyncOpenAI(base_url=server.base_url("async", "a1"), api_key=token) as many:
            calls = [many.chat.completions.create(model="policy", messages=MESSAGES) for _ in range(4)]
            return await asyncio.gather(*calls)

    assert [reply.choices[0].message.content for reply in asyncio.run(main())] == [TEXT] * 4
