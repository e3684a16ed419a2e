"""Tokens and proofs end, are taken back, and have one form; the secret stands on no command line."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from lightning_core.gateway import attempt_tokens
from lightning_core.gateway.handle import GatewayHandle
from lightning_core.gateway.service_files import load_secret
from lightning_core.otlp.proof import prove, proves
from lightning_core.otlp.spans import SpanData, encode_request
from tests.gateway_rig import Rig, client, rig

BODY = encode_request({}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


def opens(handle: GatewayHandle, token: str, rollout: str = "r.1", attempt: str = "a1") -> list[bool]:
    """Whether the token opens: a call, spans by path, spans by token, spans by gRPC."""
    headers = {"Authorization": f"Bearer {token}"}
    own = handle.attempt_url(rollout, attempt)
    asked = httpx.get(own + "/v1/models", headers=headers).status_code
    protobuf = headers | {"Content-Type": "application/x-protobuf"}
    sent = [httpx.post(url + "/v1/traces", content=BODY, headers=protobuf).status_code for url in (own, handle.url)]
    assert handle.grpc_url is not None and {asked, *sent} <= {200, 401}
    with grpc.insecure_channel(handle.grpc_url.removeprefix("http://")) as channel:
        try:
            channel.unary_unary(EXPORT)(BODY, timeout=20, metadata=[("authorization", f"Bearer {token}")])
            by_grpc = True
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            by_grpc = False
    return [status == 200 for status in (asked, *sent)] + [by_grpc]


def test_a_token_opens_nothing_after_its_end(server: Rig) -> None:
    assert opens(server.handle, server.handle.mint("r.1", "a1", "train", lasts_s=60)) == [True] * 4
    assert opens(server.handle, server.handle.mint("r.1", "a1", "train", lasts_s=-1)) == [False] * 4


def test_the_end_of_a_token_that_was_taken_before_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    token = attempt_tokens.mint("s" * 32, "r", "a", "train", expires=time.time() + 100)
    assert attempt_tokens.verify("s" * 32, token) is not None
    later = time.time() + 101
    monkeypatch.setattr(attempt_tokens.time, "time", lambda: later)
    assert attempt_tokens.verify("s" * 32, token) is None


def test_tokens_of_before_they_ended_are_taken() -> None:
    payload = json.dumps(["r", "a", "train"], separators=(",", ":")).encode()
    mac = hmac.digest(b"s" * 32, b"lightning-attempt\0" + payload, "sha256")
    parts = (base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (payload, mac))
    assert attempt_tokens.verify("s" * 32, "lf-" + ".".join(parts)) == attempt_tokens.AttemptScope("r", "a", "train")


def test_a_token_that_was_taken_back_opens_nothing_also_after_a_restart(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        token, other = (made.handle.mint("r.1", attempt, "train") for attempt in ("a/1", "a2"))
        assert opens(made.handle, token, attempt="a/1") == [True] * 4
        own = httpx.delete(f"{made.handle.url}/admin/attempts/r.1/a2", headers={"Authorization": f"Bearer {token}"})
        assert own.status_code == 401
        made.handle.revoke("r.1", "a/1")
        for _ in range(2):
            assert opens(made.handle, token, attempt="a/1") == [False] * 4
            assert opens(made.handle, other, attempt="a2") == [True] * 4
            made.handle.stop()
            made.start()


def test_a_token_is_written_in_one_way(server: Rig) -> None:
    """The last digit of base64 has bits that mean nothing: others than those we write are another text for the same bytes."""
    secret, digits = load_secret(server.home), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = server.handle.mint("r.1", "a1", "train")
    for end in (token.index("."), len(token)):
        written = token[end - 1]
        others = [token[: end - 1] + digit + token[end:] for digit in digits if digit != written]
        assert [other for other in others if attempt_tokens.verify(secret, other) is not None] == []
    for other in (token + "=", token + "\n", token.replace(".", "=."), token.replace("-", "+"), token[:-1]):
        assert other == token or attempt_tokens.verify(secret, other) is None
    assert opens(server.handle, token) == [True] * 4


def test_a_proof_holds_for_its_attempt_and_its_time_alone() -> None:
    proof = prove("s" * 32, "r", "a", expires=1000)
    assert proves("s" * 32, proof, "r", "a", at=999.9)
    wrong = [("s" * 32, proof, "r", "b"), ("s" * 32, proof, "q", "a"), ("t" * 32, proof, "r", "a")]
    wrong += [
        ("s" * 32, text, "r", "a") for text in ("", ".", "1001." + proof.partition(".")[2], proof + "0", "²." + proof)
    ]
    assert [case for case in wrong if proves(*case, at=999.9)] == []
    assert not proves("s" * 32, proof, "r", "a", at=1000)


def test_a_proof_is_no_key(server: Rig) -> None:
    proof = server.handle.prove("r.1", "a1")
    assert opens(server.handle, proof) == [False] * 4


def test_the_secret_is_no_key_for_models_of_an_attempt(server: Rig) -> None:
    """It sends spans of any attempt; calls are recorded for the attempt that makes them."""
    assert opens(server.handle, server.handle.secret) == [False, True, True, True]
    assert client(server).models.list().data
