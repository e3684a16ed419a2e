"""The server as a flow sees it: find it, start it, ask it. Synchronous and safe to use from several threads."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from lightning_core import names
from lightning_core.client.http import ask
from lightning_core.client.wire import post_request
from lightning_core.config import ServerSettings
from lightning_core.errors import LightningError
from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.process.spawn import Process, StartError, child_environment
from lightning_core.server.files import load_secret, services
from lightning_core.server.tokens import Mode, mint

log = logging.getLogger(__name__)

_START_S = 90.0
_STOP_S = 30.0


class ServerError(LightningError):
    """The server did not start, does not answer, or refused; the message says what it said."""


class ServerHandle:
    """A running server. `find` and `start` make one; only one that `start` made is stopped by `stop`."""

    def __init__(self, home: Path, url: str, pid: int, grpc_url: str | None = None) -> None:
        self.home = home
        self.url = url
        self.grpc_url = grpc_url  # of OTLP/gRPC; None where it is off
        self.pid = pid
        self._process: Process | None = None
        self._secret = load_secret(home)

    @classmethod
    def find(cls, home: Path | str) -> ServerHandle | None:
        """The server of this home, where one runs and answers /health under the pid it wrote down."""
        home = Path(home).resolve()
        try:
            where = json.loads((services(home) / "server.json").read_text())
            os.kill(where["pid"], 0)
            handle = cls(home, where["url"], where["pid"], where.get("grpc_url"))
            return handle if handle.health()["pid"] == where["pid"] else None
        except (OSError, ValueError, KeyError, ServerError):
            return None

    @classmethod
    def start(cls, home: Path | str, settings: ServerSettings, log_path: Path | str) -> ServerHandle:
        """Start a server in a session of its own and wait until it answers.

        Raises ServerError with the last lines of its log when it ends or stays silent.
        """
        home = Path(home).resolve()
        home.mkdir(parents=True, exist_ok=True)
        process = Process(server_command(home, settings), Path(log_path).resolve(), child_environment())

        def answering() -> ServerHandle | None:
            found = cls.find(home)
            return found if found is not None and found.pid == process.pid else None

        try:
            handle = process.wait_until(answering, _START_S, "the server")
        except StartError as error:
            process.end(0)
            raise ServerError(str(error)) from None
        handle._process = process
        return handle

    @property
    def started_here(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        """End the server, if this handle started it: SIGTERM, and SIGKILL when it has not drained in time."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None and process.end(_STOP_S) == -signal.SIGKILL:
            log.warning("the server (pid %d) did not stop within %.0f s and was killed", process.pid, _STOP_S)

    def attempt_url(self, rollout_id: str, attempt_id: str) -> str:
        """Root of an attempt's scope: append `/v1` for `OPENAI_BASE_URL`, nothing for the OTLP endpoint."""
        return f"{self.url}/rollouts/{quote(rollout_id, safe='')}/attempts/{quote(attempt_id, safe='')}"

    def mint(self, rollout_id: str, attempt_id: str, mode: Mode) -> str:
        """The token that opens this attempt's scope: `OPENAI_API_KEY`, and the bearer token for OTLP."""
        return mint(self._secret, rollout_id, attempt_id, mode)

    def health(self) -> dict[str, Any]:
        return self._ask("GET", "/health", timeout_s=5)

    def serving(self) -> set[str]:
        """The names that vLLM and other upstreams know, of which calls are in flight."""
        return set(self.health()["serving"])

    def seal(self) -> int:
        """Spool offset below which everything acknowledged so far lies."""
        return cast(int, self._ask("POST", "/admin/seal")["offset"])

    def set_routes(self, routes: dict[str, Any]) -> None:
        """Replace all routes: `{"policies": {name: {"upstream": …, "model": …, "version": …, …}}, "frozen": {name: {…}},
        "aliases": {alias: policy}}`.
        """
        self._ask("PUT", "/admin/routes", routes)

    def routes(self) -> dict[str, Any]:
        return self._ask("GET", "/admin/routes")

    def attempt(self, rollout_id: str, attempt_id: str) -> dict[str, Any]:
        """What the server saw of an attempt since it started, `up_s` seconds ago: lightning_core.server.stats.AttemptStats."""
        return self._ask("GET", f"/admin/attempts/{quote(rollout_id, safe='')}/{quote(attempt_id, safe='')}")

    def store(self, spans: Iterable[tuple[str, str, Sequence[SpanData]]]) -> None:
        """Spans of any attempts (rollout id, attempt id, spans) in one request: durable when it returns.

        Raises DeliveryError with what the server said.
        """
        bodies = (encode_request({names.ROLLOUT_ID: r, names.ATTEMPT_ID: a}, found) for r, a, found in spans)
        # Messages of protobuf one after another are one message, with the resources of all.
        post_request(self.url, {"Authorization": f"Bearer {self._secret}"}, b"".join(bodies))

    def begin_collection(self, name: str, collection: str) -> None:
        """Only this collection of that name is granted claims from now on; see lightning_core.server.claims."""
        self._ask("POST", "/admin/collections", {"name": name, "collection": collection})

    def claim(self, name: str, collection: str, rollout_id: str) -> bool:
        """Whether this rollout may be begun: nobody did in this collection, and no flow began another since."""
        asked = {"name": name, "collection": collection, "rollout_id": rollout_id}
        return cast(bool, self._ask("POST", "/admin/claims", asked)["granted"])

    def _ask(self, method: str, path: str, body: Any = None, timeout_s: float = 30) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._secret}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = ask(method, self.url + path, headers, content, timeout_s, direct=True)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{method} {self.url}{path}: the server does not answer ({error!r})") from error
        if answer.status != 200:
            said = answer.body[:500].decode(errors="replace")
            raise ServerError(f"{method} {self.url}{path}: {answer.status} {said}")
        return cast(dict[str, Any], json.loads(answer.body))


def server_command(home: Path, settings: ServerSettings) -> list[str]:
    """The command line of a server with these settings."""
    command = [sys.executable, "-m", "lightning_core.server", "--home", str(home), "--host", settings.host]
    command += ["--port", str(settings.port), "--spool-max-gb", str(settings.spool_max_gb)]
    command += ["--max-body-mb", str(settings.max_body_mb)]
    command += ["--grpc-port", "off" if settings.grpc_port is None else str(settings.grpc_port)]
    return [*command, "--gateway", settings.gateway.model_dump_json(exclude_defaults=True)]
