"""Load on Agent Lightning's store (`bench/agent_lightning.py`) from outside its environment, on the core of its server."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.load import SERVER_CORE, Post, Sent, on_core, send
from bench.spans import request

_SCRIPT = Path(__file__).with_name("agent_lightning.py")
ENVIRONMENT = _SCRIPT.parents[1] / ".venv-oracle"


def interpreter(environment: Path) -> Path | None:
    """Its Python, or None where the environment was not made."""
    python = environment / "bin" / "python"
    return python if python.exists() else None


class PeerServer:
    """Its store server; `requests` is how many it can be sent, a rollout each."""

    def __init__(self, python: Path, requests: int) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the server runs
        with on_core(SERVER_CORE):
            self._process = subprocess.Popen(
                [python, _SCRIPT, "serve", str(requests)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )
        where = self._answer()
        self._url: str = where["url"]
        self._scopes: list[list[str]] = where["scopes"]
        self._requests = 0

    def send(self, spans: list[bytes]) -> Sent:
        """Send `scope_spans` as requests; they carry the ids of rollouts that the store knows, as it wants it."""
        posts = []
        for body in spans:
            rollout, attempt = self._scopes[self._requests]
            self._requests += 1
            scope = {"agentlightning.rollout_id": rollout, "agentlightning.attempt_id": attempt}
            posts.append(Post("", request(body, scope)))
        return send(self._url, posts)

    def stop(self) -> int:
        """End it; returns the spans it had."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return int(self._answer()["spans"])
        finally:
            self.kill(wait_s=30)

    def kill(self, wait_s: float = 0) -> None:
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return _answer(self._process.stdout.readline(), self._log)


def memory_rate(python: Path, spans: list[bytes]) -> float:
    """Spans a second that its in-memory `add_many_spans` takes, in batches as given."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log, on_core(SERVER_CORE):
        files = [Path(folder) / f"{number:05d}" for number in range(len(spans))]
        for file, body in zip(files, spans, strict=True):
            file.write_bytes(request(body, {}))
        done = subprocess.run([python, _SCRIPT, "memory", *files], stdout=subprocess.PIPE, stderr=log)
        answer = _answer(done.stdout, log)
    return float(answer["spans"] / answer["seconds"])


def _answer(line: bytes, log: Any) -> dict[str, Any]:
    lines = line.decode().strip().splitlines()
    if not lines:
        log.seek(0)
        raise RuntimeError(f"Agent Lightning's store did not answer:\n{log.read()[-2000:].decode(errors='replace')}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
