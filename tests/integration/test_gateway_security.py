"""What opens the gateway, what never gets through it, and what is never written down."""

from __future__ import annotations

import hmac
import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from lightning_core.gateway import attempt_tokens
from lightning_core.gateway.service_files import load_secret
from tests.gateway_rig import Rig, rig

MESSAGES: Any = [{"role": "user", "content": "hi"}]
ADMINISTRATIVE = [
    *("pause", "resume", "sleep", "wake_up", "collective_rpc", "reset_prefix_cache", "update_weight_version"),
    *("v1/load_lora_adapter", "v1/unload_lora_adapter", "server_info", "tokenize", "metrics", "invocations"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.mark.parametrize("name", ADMINISTRATIVE)
def test_no_way_of_writing_a_path_reaches_an_administrative_route(server: Rig, name: str) -> None:
    server.canned.paths.clear()
    where = urlsplit(server.base_url())
    headers = {"Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
    tricks = [
        "",
        "/v1/../",
        "/v1/chat/completions/../../../",
        "/v1/%2e%2e/",
        "//",
        "/v1/models/../../",
        "/v1/models/%2e%2e%2f",
    ]
    for prefix in ("", where.path.removesuffix("/v1")):
        for trick in tricks:
            for method in ("GET", "POST"):
                connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=20)
                connection.request(method, f"{prefix}{trick or '/'}{name}", b"{}", headers)
                answer = connection.getresponse()
                ours = name == "metrics" and method == "GET" and answer.status == 200
                assert ours or answer.status in (404, 405), (prefix, trick, name)
                connection.close()
    assert server.canned.paths == set()


def test_no_header_of_a_client_goes_upstream(server: Rig) -> None:
    token = server.handle.mint("r.1", "a1", "train")
    sent = {
        "Authorization": f"Bearer {token}",
        "Host": "metadata.internal",
        "X-Forwarded-For": "127.0.0.1",
        "Forwarded": "host=metadata.internal",
        "X-Data-Parallel-Rank": "7",
        "X-Request-Id": "chosen",
        "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
        "Cookie": "a=b",
    }
    request = {"model": "policy", "messages": MESSAGES}
    answer = httpx.post(server.base_url() + "/chat/completions", json=request, headers=sent)
    assert answer.status_code == 200
    got = {key.lower(): value for key, value in server.canned.headers[-1].items()}
    assert set(got) <= {"host", "content-type", "content-length", "accept", "accept-encoding", "user-agent"}
    assert got["host"] == urlsplit(server.upstream).netloc


def test_neither_token_nor_secret_is_in_spans_logs_answers_or_metrics(server: Rig) -> None:
    secret, token = load_secret(server.home), server.handle.mint("r.9", "a", "train")
    stranger = server.handle.mint("r.8", "a", "train")
    said = []
    for key, model in ((token, "policy"), (token, "gpt-4"), (stranger, "policy"), ("Bearer " + secret, "policy")):
        for stream in (False, True):
            for fail in ([], [400], [503] * 5, ["drop"] * 5):
                server.canned.fail_next = list(fail) if key == token and model == "policy" else []
                body = {"model": model, "messages": MESSAGES, "stream": stream}
                headers = {"Authorization": f"Bearer {key}"}
                url = server.base_url("r.9", "a") + "/chat/completions"
                said.append(httpx.post(url, json=body, headers=headers, timeout=60))
                if key != token or model != "policy":
                    break
    assert {answer.status_code for answer in said} == {200, 400, 401, 404, 503}
    kept = b"".join(record.body for record in server.records()) + (server.home / "logs" / "gateway.log").read_bytes()
    kept += httpx.get(server.handle.url + "/metrics").content
    kept += b"".join(answer.content + json.dumps(dict(answer.headers)).encode() for answer in said)
    for key in (secret, token, stranger, token.partition(".")[2]):
        assert key.encode() not in kept


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []

    def compare(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(attempt_tokens.hmac, "compare_digest", compare)
    token = attempt_tokens.mint("secret", "r", "a", "train")
    assert attempt_tokens.verify("secret", token) == attempt_tokens.AttemptScope("r", "a", "train")
    assert attempt_tokens.verify("secret", token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]) is None
    assert attempt_tokens.is_secret("secret", "secret") and not attempt_tokens.is_secret("secret", "secreT")
    assert len(compared) == 4


def test_a_token_opens_its_own_rollout_and_attempt_only_on_every_route(server: Rig) -> None:
    own = server.handle.mint("r.1", "a1", "train")
    made = openai.OpenAI(base_url=server.base_url(), api_key=own).responses.create(model="policy", input="hi")
    routes = [
        *(("POST", f"/v1/{name}") for name in ("chat/completions", "completions", "responses", "embeddings", "traces")),
        *(("POST", "/v1/metrics"), ("POST", "/v1/logs"), ("GET", "/v1/models"), ("GET", "/v1/models/policy")),
        *(("GET", f"/v1/responses/{made.id}"), ("DELETE", f"/v1/responses/{made.id}")),
        *(("GET", f"/v1/responses/{made.id}/input_items"), ("POST", f"/v1/responses/{made.id}/cancel")),
    ]
    before = len(server.records())
    for rollout, attempt in (("r.1", "a2"), ("r.2", "a1"), ("r.1%2Fa1", "a1")):
        for method, path in routes:
            url = f"{server.handle.url}/rollouts/{rollout}/attempts/{attempt}{path}"
            answer = httpx.request(method, url, content=b"{}", headers={"Authorization": f"Bearer {own}"})
            assert answer.status_code == 401, (rollout, attempt, path)
    for path in ("/admin/seal", "/admin/routes", "/admin/rounds", "/admin/claims", "/admin/attempts/r.1/a1"):
        for method in ("GET", "POST", "PUT"):
            answer = httpx.request(method, server.handle.url + path, headers={"Authorization": f"Bearer {own}"})
            assert answer.status_code in (401, 405)
    assert len(server.records()) == before
    mine = httpx.get(f"{server.base_url()}/responses/{made.id}", headers={"Authorization": f"Bearer {own}"})
    assert mine.json()["id"] == made.id
