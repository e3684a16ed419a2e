"""A Prefect API for flows run from the command line, where the user has none.

Prefect would start one of its own, in the terminal's process group: Ctrl-C would end it before the flow, which then
waits for minutes for an API that is gone. This one has a session of its own and ends after the flow. Prefect is not
imported before its address is known: its settings are read then.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from lightning_core.errors import LightningError
from lightning_core.events import shown
from lightning_core.process.linux import end_with_parent

logger = logging.getLogger(__name__)

_START_S = 180.0


@contextlib.contextmanager
def prefect_api(home: Path) -> Iterator[None]:
    """`PREFECT_API_URL` for the context: the user's own, else of a server on a free port that keeps its record in `home`."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    if "PREFECT_API_URL" in os.environ:
        yield
        return
    folder = (home / "prefect").resolve()
    folder.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder of a path only
    os.environ.setdefault("PREFECT_HOME", str(folder))
    os.environ.setdefault("PREFECT_MEMO_STORE_PATH", str(folder / "memo_store.toml"))
    port = _free_port()
    os.environ["PREFECT_API_URL"] = url = f"http://127.0.0.1:{port}/api"
    log_path = folder / "server.log"
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    parent = os.getpid()
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PREFECT_UI_API_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(parent),
        )
    try:
        logger.info("starting Prefect's server", extra=shown())
        importlib.import_module("prefect.main")  # seconds, in which the server starts
        _wait_until_healthy(process, port, log_path)
        logger.info("Prefect's UI, while this runs: http://127.0.0.1:%d", port, extra=shown())
        yield
    finally:
        _send_what_waits()
        del os.environ["PREFECT_API_URL"]
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _send_what_waits() -> None:
    """Logs and events that Prefect sends in the background: behind a server that is gone they would be retried for long."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=5)


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log_path.read_text(errors="replace")[-1500:]
            raise LightningError(f"Prefect's server ended with code {process.returncode}; {log_path} says:\n{tail}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2).close()
            return
        time.sleep(0.2)
    raise LightningError(f"Prefect's server did not answer within {_START_S:.0f} s; see {log_path}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
