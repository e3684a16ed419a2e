"""Where a call goes: policies and their versions, replicas, and models of other upstreams, through OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

from lightning_core import names
from lightning_core.gateway.handle import GatewayError
from tests.canned_vllm import CannedVllm
from tests.gateway_rig import Rig, attributes, client, last, rig

MESSAGES: Any = [{"role": "user", "content": "hi"}]
KEY = "sk-the-judges-own-key"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, CannedVllm]]:
    """A server with the upstream `other` (models `judge` and `embed/3`) beside its policy."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JUDGE_KEY", KEY)
        home = tmp_path_factory.mktemp("home")
        with rig(home) as made, made.beside() as (address, other):
            made.handle.stop()
            upstream: dict[str, Any] = {"name": "other", "base_url": address + "/v1", "api_key_env": "JUDGE_KEY"}
            upstream |= {"models": ["judge", "embed/3"]}
            made.start(upstreams=[upstream], log_calls="facts")
            yield made, other


def ask(server: Rig, rollout: str = "r.1", model: str = "policy", **options: Any) -> Any:
    return client(server, rollout).chat.completions.create(model=model, messages=MESSAGES, **options)


def test_a_judge_is_asked_as_it_was_asked_and_recorded_as_no_policy(judged: tuple[Rig, CannedVllm]) -> None:
    server, other = judged
    reply = ask(server, model="judge", temperature=0, seed=1, logprobs=True)
    assert reply.model == "judge" and reply.choices[0].logprobs is not None
    sent, headers = other.requests[-1], other.headers[-1]
    assert sent == {"model": "judge", "messages": MESSAGES, "temperature": 0, "seed": 1, "logprobs": True}
    assert headers["Authorization"] == f"Bearer {KEY}"
    span = last(server)
    assert names.POLICY not in span and names.POLICY_VERSION not in span and span[names.UPSTREAM] == "other"
    assert span[names.GEN_AI_REQUEST_MODEL] == "judge" and span[names.UNTRAINABLE] == "other_model"
    assert server.spans()[-1].name == "chat judge"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(server, model="judge", stream=True))
    assert text == "Hellold"
    answer = client(server).responses.create(model="judge", input="hi")
    assert answer.output_text == "Hello world"


def test_embeddings_pass_to_their_upstream_and_a_policy_gives_none(judged: tuple[Rig, CannedVllm]) -> None:
    server, other = judged
    reply = client(server).embeddings.create(model="embed/3", input=["a", "b"], encoding_format="float")
    assert reply.data[0].embedding == [0.5, -0.25] and reply.usage.prompt_tokens == 3
    assert other.requests[-1]["input"] == ["a", "b"]
    span = last(server)
    assert (span[names.GEN_AI_OPERATION], span[names.GEN_AI_INPUT_TOKENS]) == ("embeddings", 3)
    assert "0.5" not in json.dumps({key: str(value) for key, value in span.items()})
    with pytest.raises(openai.NotFoundError, match="embeddings"):
        client(server).embeddings.create(model="policy", input="a")


def test_an_upstreams_key_is_in_no_span_no_error_no_log_and_no_file(judged: tuple[Rig, CannedVllm]) -> None:
    server, other = judged
    for status in (401, 400):
        other.fail_with = {"message": f"Incorrect API key provided: {KEY}", "type": "invalid_request_error"}
        other.fail_next = [status]
        with pytest.raises(openai.APIStatusError) as caught:
            ask(server, model="judge")
        assert caught.value.status_code == (503 if status == 401 else 400)
        assert KEY not in str(caught.value.body) and "Incorrect API key" in str(caught.value.body)
    other.fail_with = None
    other.instead = json.dumps({"error": {"message": f"no quota for {KEY}"}}).encode()
    with pytest.raises(openai.APIError, match="no quota for …"):
        list(ask(server, model="judge", stream=True))
    other.instead = None
    assert KEY not in json.dumps(server.handle.routes()) + str(server.handle.attempt("r.1", "a1"))
    for file in server.home.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


def test_a_rate_limit_of_an_upstream_says_when_to_come_again(judged: tuple[Rig, CannedVllm]) -> None:
    server, other = judged
    other.fail_next, other.fail_headers = [429], {"Retry-After": "7", "Set-Cookie": "a=b"}
    with pytest.raises(openai.RateLimitError) as caught:
        ask(server, model="judge")
    other.fail_headers = {}
    headers = caught.value.response.headers
    assert headers["retry-after"] == "7" and "set-cookie" not in headers


def test_every_name_that_can_be_asked_for_is_listed_and_the_rest_is_404_with_the_list(
    judged: tuple[Rig, CannedVllm],
) -> None:
    server, _ = judged
    listed = [model.id for model in client(server).models.list()]
    assert listed == ["policy", "policy@v0003", "judge", "embed/3"]
    assert [client(server).models.retrieve(name).id for name in ("policy@v0003", "embed/3")] == [
        "policy@v0003",
        "embed/3",
    ]
    for unknown in ("policy@v0004", "policy@", "gpt-4", "judge@v0001"):
        with pytest.raises(openai.NotFoundError, match=r"policy, policy@v0003, judge, embed/3") as caught:
            ask(server, model=unknown)
        assert caught.value.code == "model_not_found" and caught.value.param == "model"


ALIASES = {"openai/gpt-4o": "policy", "gpt-4.1-mini": "policy", "nobodys": "not-there-yet"}


@pytest.fixture
def aliased(judged: tuple[Rig, CannedVllm]) -> Iterator[Rig]:
    server, _ = judged
    server.alias(ALIASES)
    yield server
    server.alias({})


def test_an_alias_is_answered_by_its_policy_on_every_route_and_the_reply_says_what_was_asked_for(aliased: Rig) -> None:
    agent, name = client(aliased), "openai/gpt-4o"
    chat: Any = {"model": name, "messages": MESSAGES}
    streamed = [
        *[chunk.model for chunk in agent.chat.completions.create(**chat, stream=True)],
        *[chunk.model for chunk in agent.completions.create(model=name, prompt="hi", stream=True)],
        *[
            e.response.model
            for e in cast(Iterator[Any], agent.responses.create(model=name, input="hi", stream=True))
            if "response" in e.to_dict()
        ],
    ]
    whole = [
        agent.chat.completions.create(**chat).model,
        agent.completions.create(model=name, prompt="hi").model,
        agent.responses.create(model=name, input="hi").model,
    ]
    assert {*streamed, *whole} == {name}
    spans = [attributes(span) for span in aliased.spans()[-6:]]
    for key, value in (
        (names.GEN_AI_REQUEST_MODEL, name),
        (names.POLICY, "policy"),
        (names.POLICY_VERSION, "v0003"),
        (names.GEN_AI_RESPONSE_MODEL, "policy-v0003"),
    ):
        assert [span[key] for span in spans] == [value] * 6
    assert [aliased.canned.requests[-1][key] for key in ("model", "temperature")] == ["policy-v0003", 1.0]


def test_aliases_are_listed_and_found_by_their_name(aliased: Rig) -> None:
    agent = client(aliased)
    listed = [model.id for model in agent.models.list()]
    assert listed == ["policy", "policy@v0003", "judge", "embed/3", "openai/gpt-4o", "gpt-4.1-mini"]
    assert agent.models.retrieve("openai/gpt-4o").id == "openai/gpt-4o"
    headers = {"Authorization": f"Bearer {agent.api_key}"}
    for path in ("openai/gpt-4o", "openai%2Fgpt-4o"):
        assert httpx.get(f"{aliased.base_url()}/models/{path}", headers=headers).json()["id"] == "openai/gpt-4o"


def test_a_name_nobody_has_is_refused_with_the_line_that_would_lead_it_to_a_policy(aliased: Rig) -> None:
    with pytest.raises(openai.NotFoundError, match=r'`aliases: \["gpt-5"\]`'):
        ask(aliased, model="gpt-5")
    for named in ("policy@v0004", "nobodys"):  # a version that is not served, an alias of a policy that is not yet
        with pytest.raises(openai.NotFoundError) as caught:
            ask(aliased, model=named)
        assert "aliases" not in str(caught.value)


def test_exact_names_come_before_aliases_and_the_star_comes_last(aliased: Rig) -> None:
    server = aliased
    server.alias({"judge": "policy", "gpt-4o": "policy", "*": "other"}, other={"version": "v0007"})

    def answered(model: str) -> tuple[Any, ...]:
        ask(server, model=model)
        return tuple(last(server).get(key) for key in (names.UPSTREAM, names.POLICY, names.POLICY_VERSION))

    assert answered("judge") == ("other", None, None)
    assert answered("policy@v0003") == answered("gpt-4o") == (None, "policy", "v0003")
    assert answered("anthropic/claude") == answered("gpt-4o@v0003") == (None, "other", "v0007")
    assert "*" not in [model.id for model in client(server).models.list()]
    with pytest.raises(openai.NotFoundError):  # a version that is not served is not another policy's call
        ask(server, model="policy@v0004")
    assert client(server).models.retrieve("anthropic/claude").id == "anthropic/claude"


def test_a_refused_call_by_an_alias_is_its_policys(aliased: Rig) -> None:
    with pytest.raises(openai.NotFoundError, match=r"policy `policy`.*embeddings.*gateway.upstreams"):
        client(aliased, "embeds").embeddings.create(model="gpt-4.1-mini", input="a")
    span = last(aliased)
    assert (span[names.POLICY], span[names.GEN_AI_REQUEST_MODEL]) == ("policy", "gpt-4.1-mini")


def test_evaluation_and_a_rollouts_first_version_hold_by_an_alias_too(aliased: Rig) -> None:
    evaluating = client(aliased, "tried", mode="evaluate").chat.completions
    evaluating.create(model="gpt-4.1-mini", messages=MESSAGES, top_p=0.5)
    assert aliased.canned.requests[-1]["top_p"] == 0.5 and last(aliased)[names.POLICY] == "policy"
    newer = {"model": "policy-v0004", "version": "v0004", "loaded": {"v0003": {"model": "policy-v0003"}}}
    aliased.alias(ALIASES, policy=newer)
    for rollout, version in (("tried", "v0003"), ("anew", "v0004")):
        ask(aliased, rollout, "gpt-4.1-mini")
        assert last(aliased)[names.POLICY_VERSION] == version


def test_the_log_has_a_line_of_facts_a_call_and_no_text(judged: tuple[Rig, CannedVllm]) -> None:
    server, _ = judged
    secret = "what only the agent knows"
    client(server).chat.completions.create(model="policy", messages=[{"role": "user", "content": secret}])
    text = (server.home / "logs" / "gateway.log").read_text()
    lines = [json.loads(line[line.index("{") :]) for line in text.splitlines() if "gateway.calls" in line]
    assert lines[-1]["rollout"] == "r.1" and lines[-1]["completion_tokens"] == 4 and lines[-1]["version"] == "v0003"
    assert secret not in text and "Hello world" not in text


def test_a_server_without_the_key_does_not_start_and_says_which(tmp_path: Path) -> None:
    upstream: dict[str, Any] = {
        "name": "other",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key_env": "NO_SUCH_KEY",
        "models": ["judge"],
    }
    with (
        pytest.raises(GatewayError, match=r"'other': \$NO_SUCH_KEY is not set"),
        rig(tmp_path, upstreams=[upstream]),
    ):
        pass


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


def test_a_version_that_stays_loaded_can_be_pinned(running: Rig) -> None:
    loaded = {"v0002": {"model": "policy-v0002"}}
    running.route(loaded=loaded)
    for name, model, version in (
        ("policy@v0002", "policy-v0002", "v0002"),
        ("policy@v0003", "policy-v0003", "v0003"),
        ("policy", "policy-v0003", "v0003"),
    ):
        reply = ask(running, "pins", name)
        assert reply.model == name and running.canned.requests[-1]["model"] == model
        span = last(running)
        assert (span[names.POLICY], span[names.POLICY_VERSION]) == ("policy", version)
        assert running.canned.requests[-1]["temperature"] == 1.0  # a pinned policy samples as the policy does


def test_a_rollout_stays_on_the_version_it_began_with_and_new_ones_get_the_new(running: Rig) -> None:
    running.route()
    ask(running, "old")
    running.route(model="policy-v0004", version="v0004", loaded={"v0003": {"model": "policy-v0003"}})
    ask(running, "old")
    assert running.canned.requests[-1]["model"] == "policy-v0003" and last(running)[names.POLICY_VERSION] == "v0003"
    ask(running, "new")
    assert running.canned.requests[-1]["model"] == "policy-v0004" and last(running)[names.POLICY_VERSION] == "v0004"
    running.route(
        model="policy-v0005", version="v0005"
    )  # v0003 is gone: by default its rollout goes on with the new one
    ask(running, "old")
    assert last(running)[names.POLICY_VERSION] == "v0005"


def test_an_adapters_call_that_ran_through_a_swap_saw_its_own_version_only(running: Rig) -> None:
    running.route()
    running.gate()
    stream = iter(ask(running, "swap", stream=True))
    next(stream)
    running.route(model="policy-v0004", version="v0004", loaded={"v0003": {"model": "policy-v0003"}})
    running.open()
    list(stream)
    running.canned.gate = None
    assert last(running)[names.POLICY_VERSION] == "v0003"


def test_a_rollout_whose_version_went_is_refused_where_the_settings_say_so(tmp_path: Path) -> None:
    with rig(tmp_path, version_change="refuse") as made:
        ask(made, "old")
        made.route(version="v0004")
        with pytest.raises(openai.ConflictError, match="v0003") as caught:
            ask(made, "old")
        assert caught.value.code == "policy_version_changed"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert ask(made, "new").choices


def test_replicas_share_the_rollouts_and_a_rollout_stays_where_it_was(running: Rig) -> None:
    with running.beside() as (address, second):
        running.route(replicas=[address])
        running.canned.requests.clear()
        for rollout in ("s1", "s2"):
            for canned in (running.canned, second):
                running.gate(canned)
            streams = [iter(ask(running, f"{rollout}.{n}", stream=True)) for n in range(4)]
            for stream in streams:
                next(stream)
            assert len(running.canned.requests) == len(second.requests)  # the least loaded first
            for canned in (running.canned, second):
                running.open(canned)
            for stream in streams:
                list(stream)
        before = len(second.requests)
        for _ in range(3):
            ask(running, "s1.0")
            ask(running, "s1.1")
        assert len(second.requests) - before == 3
        # One of them gone: its rollouts move, and nobody notices.
        running.on_loop(second.stop())
        for n in range(4):
            assert ask(running, f"s1.{n}").choices
        assert running.handle.attempt("s1.1", "a1")["infrastructure_errors"] == 0


def test_a_rollouts_calls_to_another_model_leave_its_home_alone(running: Rig) -> None:
    with running.beside() as (address, second):
        policy = {"upstream": running.upstream, "model": "policy-v0003", "version": "v0003", "replicas": [address]}
        critic = {"upstream": running.upstream, "model": "base"}
        running.handle.set_routes({"policies": {"policy": policy}, "frozen": {"critic": critic}})
        running.gate()
        busy = iter(ask(running, "busy", stream=True))
        next(busy)
        ask(running, "home")
        running.open()
        list(busy)
        ask(running, "home", model="critic")
        ask(running, "home")
        assert len(second.requests) == 2


def test_a_frozen_model_is_the_base_model_sampled_as_the_agent_asks_and_never_trained(
    judged: tuple[Rig, CannedVllm],
) -> None:
    server, _ = judged
    policy = {"upstream": server.upstream, "model": "policy-v0003", "version": "v0003"}
    server.handle.set_routes(
        {"policies": {"policy": policy}, "frozen": {"critic": {"upstream": server.upstream, "model": "base"}}}
    )
    try:
        assert ask(server, model="critic", temperature=0.3).model == "critic"
        sent, span = server.canned.requests[-1], last(server)
        assert (sent["model"], sent["temperature"]) == ("base", 0.3)
        assert names.POLICY not in span and span[names.UNTRAINABLE] == "other_model"
        assert {"policy", "critic"} <= {model.id for model in client(server).models.list()}
    finally:
        server.route()
