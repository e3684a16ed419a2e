"""What a page in a browser can reach when its name points to this machine: nothing that is answered without a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from lightning_core.gateway.handle import GatewayHandle
from lightning_core.gateway.service_files import load_secret
from lightning_core.otlp.spans import SpanData, encode_request
from tests.gateway_rig import Rig, rig

BODY = encode_request({}, [SpanData("work", 1, 2, "74" * 16, "73" * 8)])
FOREIGN = ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example:1", "[evil"]
OWN = ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}", "192.0.2.7"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_health_and_metrics_are_not_for_other_names(server: Rig, path: str) -> None:
    for host in FOREIGN:
        answer = httpx.get(server.handle.url + path, headers={"Host": host})
        assert answer.status_code == 421 and answer.json()["error"]["code"] == "unknown_host", host
    port = urlsplit(server.handle.url).port
    for host in OWN:
        assert httpx.get(server.handle.url + path, headers={"Host": host.format(port=port)}).status_code == 200, host
    keyed = {"Host": "gateway.internal", "Authorization": "Bearer " + load_secret(server.home)}
    assert httpx.get(server.handle.url + path, headers=keyed).status_code == 200


def test_spans_without_a_token_are_not_taken_from_other_names(server: Rig) -> None:
    before = len(server.records())
    headers = {"Content-Type": "application/x-protobuf", "Host": "evil.example"}
    for signal in ("traces", "metrics", "logs"):
        answer = httpx.post(f"{server.handle.url}/v1/{signal}", content=BODY, headers=headers)
        assert answer.status_code == 421
    assert len(server.records()) == before
    headers |= {"Host": "gateway.internal", "Authorization": "Bearer " + server.handle.mint("r.1", "a1", "train")}
    assert httpx.post(f"{server.handle.url}/v1/traces", content=BODY, headers=headers).status_code == 200


def test_health_and_metrics_want_the_secret_where_the_settings_say_so(tmp_path: Path) -> None:
    with rig(tmp_path, metrics_need_secret=True) as made:
        token, secret = made.handle.mint("r.1", "a1", "train"), load_secret(made.home)
        for path in ("/health", "/metrics"):
            assert httpx.get(made.handle.url + path).status_code == 401
            assert httpx.get(made.handle.url + path, headers={"Authorization": f"Bearer {token}"}).status_code == 401
            assert httpx.get(made.handle.url + path, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert GatewayHandle.find(made.home) is not None
