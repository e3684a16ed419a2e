"""The gateway as a flow sees it: find it, start it, ask it. Synchronous and safe to use from several threads."""

from __future__ import annotations

import http.client
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from lightning_core import names
from lightning_core.client.delivery import DeliveryError, post_request
from lightning_core.client.http import ask
from lightning_core.config import GatewaySettings
from lightning_core.errors import LightningError
from lightning_core.gateway.attempt_tokens import LIFETIME_S, Mode, mint, mint_opener, verify_opener
from lightning_core.gateway.service_files import load_secret, services
from lightning_core.otlp.proof import prove
from lightning_core.otlp.spans import SpanData, encode_request
from lightning_core.process.spawn import Process, StartError, child_environment

log = logging.getLogger(__name__)

_START_S = 90.0
_STOP_S = 30.0


class GatewayError(LightningError):
    """The gateway did not start, does not answer, or refused; the message says what it said."""


class GatewayHandle:
    """A running gateway. `find` and `start` make one; only one that `start` made is stopped by `stop`."""

    def __init__(self, home: Path, url: str, pid: int, grpc_url: str | None = None) -> None:
        self.home = home
        self.url = url
        self.grpc_url = grpc_url  # of OTLP/gRPC; None where it is off
        self.pid = pid
        self._process: Process | None = None
        self.secret = load_secret(home)  # whoever sends spans with it writes roots and graders' rewards

    @classmethod
    def find(cls, home: Path | str) -> GatewayHandle | None:
        """Return the gateway of this home if one runs and answers /health under the pid it wrote down, else None."""
        home = Path(home).resolve()
        try:
            where = json.loads((services(home) / "gateway.json").read_text())
            os.kill(where["pid"], 0)
            handle = cls(home, where["url"], where["pid"], where.get("grpc_url"))
            return handle if handle.health()["pid"] == where["pid"] else None
        except (OSError, ValueError, KeyError, GatewayError):
            return None

    @classmethod
    def start(cls, home: Path | str, settings: GatewaySettings, log_path: Path | str) -> GatewayHandle:
        """Start a gateway in a session of its own and wait until it answers.

        Raises GatewayError with the last lines of its log when it ends or stays silent.
        """
        home = Path(home).resolve()
        home.mkdir(parents=True, exist_ok=True)
        process = Process(gateway_command(home, settings), Path(log_path).resolve(), child_environment())

        def answering() -> GatewayHandle | None:
            found = cls.find(home)
            return found if found is not None and found.pid == process.pid else None

        try:
            handle = process.wait_until(answering, _START_S, "the gateway")
        except StartError as error:
            process.end(0)
            raise GatewayError(str(error)) from None
        handle._process = process
        return handle

    def stop(self) -> None:
        """End the gateway, if this handle started it: SIGTERM, and SIGKILL when it has not drained in time."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None and process.end(_STOP_S) == -signal.SIGKILL:
            log.warning("the gateway (pid %d) did not stop within %.0f s and was killed", process.pid, _STOP_S)

    def attempt_url(self, rollout_id: str, attempt_id: str) -> str:
        """Return the root of an attempt's scope: append `/v1` for `OPENAI_BASE_URL`, nothing for the OTLP endpoint."""
        return f"{self.url}/rollouts/{quote(rollout_id, safe='')}/attempts/{quote(attempt_id, safe='')}"

    def mint(
        self, rollout_id: str, attempt_id: str, mode: Mode, lasts_s: float = LIFETIME_S, prompts: str | None = None
    ) -> str:
        """Make the token that opens this attempt's scope for so many seconds.

        It is its `OPENAI_API_KEY`, and the bearer token for OTLP.
        `prompts`: digest of the prompts that its calls are served.
        """
        return mint(self.secret, rollout_id, attempt_id, mode, time.time() + lasts_s, prompts=prompts)

    def prove(self, rollout_id: str, attempt_id: str, lasts_s: float = LIFETIME_S) -> str:
        """Make the proof, for so many seconds, that spans are this attempt's: a resource attribute (`names.PROOF`)."""
        return prove(self.secret, rollout_id, attempt_id, time.time() + lasts_s)

    def mint_opener(self, lasts_s: float = LIFETIME_S) -> str:
        """Make a key that may open rollouts (`POST /v1/rollouts`) for so many seconds, and do nothing else."""
        return mint_opener(self.secret, secrets.token_hex(8), time.time() + lasts_s)

    def revoke(self, rollout_id: str, attempt_id: str) -> None:
        """Refuse the attempt's tokens from now on, whenever they end. It cannot be undone: new ones are refused too."""
        self._ask("DELETE", f"/admin/attempts/{quote(rollout_id, safe='')}/{quote(attempt_id, safe='')}")

    def revoke_opener(self, key: str) -> None:
        """Refuse this opener key from now on; rollouts that it opened go on.

        Raises ValueError where it is none, or has ended.
        """
        key_id = verify_opener(self.secret, key)
        if key_id is None:
            raise ValueError("this is no opener key of this gateway, or it has ended")
        self._ask("DELETE", f"/admin/openers/{key_id}")

    def health(self) -> dict[str, Any]:
        return self._ask("GET", "/health", timeout_s=5)

    def serving(self) -> set[str]:
        """Return the names that vLLM and other upstreams know, of the models that have calls in flight."""
        return set(self.health()["serving"])

    def seal(self) -> int:
        """Return the spool offset below which everything acknowledged so far lies."""
        return cast(int, self._ask("POST", "/admin/seal")["offset"])

    def set_routes(self, routes: dict[str, Any]) -> None:
        """Replace all routes.

        They are `{"policies": {name: {"upstream": …, "model": …, "version": …, …}}, "frozen": {name: {…}},
        "aliases": {alias: policy}}`.
        """
        self._ask("PUT", "/admin/routes", routes)

    def routes(self) -> dict[str, Any]:
        return self._ask("GET", "/admin/routes")

    def attempt(self, rollout_id: str, attempt_id: str) -> dict[str, Any]:
        """Return what the gateway saw of an attempt since it started, `up_s` seconds ago.

        See lightning_core.gateway.stats.AttemptStats.
        """
        return self._ask("GET", f"/admin/attempts/{quote(rollout_id, safe='')}/{quote(attempt_id, safe='')}")

    def store(self, spans: Iterable[tuple[str, str, Sequence[SpanData]]]) -> None:
        """Store spans of any attempts (rollout id, attempt id, spans) in one request: they are durable when it returns.

        Raises GatewayError with what the gateway answered.
        """
        bodies = (encode_request({names.ROLLOUT_ID: r, names.ATTEMPT_ID: a}, found) for r, a, found in spans)
        self.post(b"".join(bodies))

    def post(self, body: bytes) -> None:
        """Send an OTLP request made of several: protobuf messages in a row are one message, with the resources of all.

        Raises GatewayError with what the gateway answered.
        """
        try:
            post_request(self.url, {"Authorization": f"Bearer {self.secret}"}, body)
        except DeliveryError as error:
            raise GatewayError(f"the gateway at {self.url} took no spans: {error}; its log says why") from error

    def begin_round(self, name: str, round_id: str) -> None:
        """Grant claims of this round of that name alone from now on; see lightning_core.gateway.admin.Claims."""
        self._ask("POST", "/admin/rounds", {"name": name, "round": round_id})

    def claim(self, name: str, round_id: str, rollout_id: str) -> bool:
        """Return whether this rollout may be begun: nobody did in this round, and no flow began another round since."""
        asked = {"name": name, "round": round_id, "rollout_id": rollout_id}
        return cast(bool, self._ask("POST", "/admin/claims", asked)["granted"])

    def _ask(self, method: str, path: str, body: Any = None, timeout_s: float = 30) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = ask(method, self.url + path, headers, content, timeout_s, direct=True)
        except (OSError, http.client.HTTPException) as error:
            raise GatewayError(f"{method} {self.url}{path}: the gateway does not answer ({error!r})") from error
        if answer.status != 200:
            said = answer.body[:500].decode(errors="replace")
            raise GatewayError(f"{method} {self.url}{path}: {answer.status} {said}")
        return cast(dict[str, Any], json.loads(answer.body))


def gateway_command(home: Path, settings: GatewaySettings) -> list[str]:
    """Return the command line of a gateway with these settings."""
    command = [sys.executable, "-m", "lightning_core.gateway", "--home", str(home)]
    return [*command, "--settings", settings.model_dump_json(exclude_defaults=True)]
