"""The server as a flow sees it: find it, start it, ask it. Synchronous and safe to use from several threads."""

from __future__ import annotations

import http.client
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from lightning_core import names
from lightning_core.client.http import ask
from lightning_core.client.wire import SpanData, encode_request, post_request
from lightning_core.config import ServerSettings
from lightning_core.errors import LightningError
from lightning_core.process.spawn import child_environment
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
        self._process: subprocess.Popen[bytes] | None = None
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
        home, log_path = Path(home).resolve(), Path(log_path).resolve()
        home.mkdir(parents=True, exist_ok=True)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log_file:
            begin = log_file.tell()
            process = subprocess.Popen(
                server_command(home, settings),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                env=child_environment(),
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None:
                raise ServerError(f"the server ended with code {code}:\n{_tail(log_path, begin)}")
            found = cls.find(home)
            if found is not None and found.pid == process.pid:
                found._process = process
                return found
            time.sleep(0.05)
        process.kill()
        process.wait()
        raise ServerError(f"the server did not answer within {_START_S:.0f} s:\n{_tail(log_path, begin)}")

    @property
    def started_here(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        """End the server, if this handle started it: SIGTERM, and SIGKILL when it has not drained in time."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            log.warning("the server (pid %d) did not stop within %.0f s and is killed", process.pid, _STOP_S)
            process.kill()
            process.wait()

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


def _tail(path: Path, begin: int, lines: int = 20) -> str:
    with path.open("rb") as file:
        file.seek(begin)
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
