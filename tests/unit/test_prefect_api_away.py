"""What needs Prefect's server to begin waits for one that is away, and says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from lightning_flows.tasks import api
from tests.ports import free_port


class Unwilling(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serving(port: int) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", port), Unwilling)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


def test_who_waits_goes_on_when_the_server_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api, "_POLL_S", 0.01)
    port, back = free_port(), threading.Event()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        waiting = threading.Thread(target=copy_context().run, args=(lambda: (api.wait_for_api(), back.set()),))
        waiting.start()
        assert not back.wait(0.1)
        with serving(port):
            assert back.wait(10), "any answer is one: it is there"
            waiting.join()
    assert "does not answer; waiting for it" in caplog.text


def test_a_server_that_stays_away_is_an_error_that_says_what_to_do() -> None:
    port = free_port()
    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
        pytest.raises(api.ApiAway, match=rf"{port}/api has not answered for 0 s; start it, and run the flow again"),
    ):
        api.wait_for_api(patience_s=0)


def test_without_a_server_of_its_own_there_is_nothing_to_wait_for() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        api.wait_for_api(patience_s=0)
