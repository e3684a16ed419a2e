"""What a flow says of spans that its server did not take."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from lightning_core.config import Settings
from lightning_core.epoch.epoch import Epoch
from lightning_core.gateway.handle import GatewayError
from lightning_core.lake.manifest import EpochManifest
from lightning_flows.tasks import rollouts


class Server:
    def __init__(self, **counts: int) -> None:
        self.counts = counts

    def health(self) -> dict[str, Any]:
        return self.counts


@pytest.mark.parametrize(
    ("before", "now", "logged"),
    [
        ((0, 0), (0, 0), []),
        ((3, 2), (3, 2), []),
        ((3, 2), (5, 9), ["2 requests of spans were answered 503", "7 spans sent as JSON"]),
        ((3, 2), (0, 0), []),  # the server was started again
    ],
)
def test_a_flow_warns_of_spans_that_were_refused_while_its_rollouts_ran(
    before: tuple[int, int], now: tuple[int, int], logged: list[str], caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "logger", lambda: logging.getLogger("flow"))
    server: Any = Server(refused_otlp=now[0], rejected_spans=now[1])
    rollouts._log_what_was_refused(server, {"refused_otlp": before[0], "rejected_spans": before[1]})
    assert len(caplog.messages) == len(logged)
    assert all(message.startswith(start) for message, start in zip(caplog.messages, logged, strict=True))


def test_a_server_that_is_gone_is_no_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def health(self: Server) -> dict[str, Any]:
        raise GatewayError("the server does not answer")

    monkeypatch.setattr(Server, "health", health)
    server: Any = Server()
    rollouts._log_what_was_refused(server, {"refused_otlp": 0})


@pytest.mark.parametrize(("answers", "ends_them"), [("....", False), (".xx.", False), (".xxx", True)])
def test_where_the_server_stays_away_no_rollout_is_begun_any_more(
    answers: str, ends_them: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, closed = list(answers), []
    monkeypatch.setattr(rollouts.GatewayHandle, "find", lambda home: object() if looks.pop(0) == "." else None)
    monkeypatch.setattr(rollouts, "settled", lambda futures, timeout_s: not looks)
    monkeypatch.setattr(rollouts, "close_runners", lambda: closed.append(True))
    monkeypatch.setattr(rollouts, "decode_spool", lambda home, redaction: None)
    settings = {"run": "r", "home": tmp_path, "agent": {"command": "true"}, "tasks": {"train": "none"}}
    epoch = EpochManifest(run="r", epoch=0, opened_offset=0)
    rollouts._wait(Epoch(Settings.model_validate(settings), epoch), [])
    assert bool(closed) == ends_them
