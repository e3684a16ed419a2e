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
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from lightning_core.events import shown
from lightning_core.process.spawn import Process

logger = logging.getLogger(__name__)

_START_S = 180.0
# Prefect's client keeps a connection for 25 idle seconds; one that the server has closed costs it a retry after 2 s.
_KEEPALIVE_S = 60


_lock = threading.Lock()
_users = 0  # of this process's own server
_running = contextlib.ExitStack()  # it


@contextlib.contextmanager
def prefect_api(home: Path) -> Iterator[None]:
    """Set `PREFECT_API_URL` while the block runs, where the user has none.

    It is that of a server on a free port, which is started and keeps its record in `home`. Contexts of several
    threads share one server, in the home of the first; it ends with the last of them.
    """
    global _users
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    with _lock:
        ours = _users > 0 or "PREFECT_API_URL" not in os.environ
        if ours and not _users:
            _running.enter_context(_server(home))
        _users += ours
    try:
        with _known_to_prefect() if ours else contextlib.nullcontext():
            yield
    finally:
        with _lock:
            _users -= ours
            if ours and not _users:
                _running.close()


@contextlib.contextmanager
def _known_to_prefect() -> Iterator[None]:
    """Pass the server's address to Prefect.

    Prefect reads its environment once, so it would not know the second server of this process.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
        yield


@contextlib.contextmanager
def _server(home: Path) -> Iterator[None]:
    folder = (home / "prefect").resolve()
    folder.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder of a path only
    os.environ.setdefault("PREFECT_HOME", str(folder))
    os.environ.setdefault("PREFECT_MEMO_STORE_PATH", str(folder / "memo_store.toml"))
    with _bound_socket() as bound:
        port, number = bound.getsockname()[1], bound.fileno()
        os.environ["PREFECT_API_URL"] = url = f"http://127.0.0.1:{port}/api"
        environment, command = os.environ | {"PREFECT_UI_API_URL": url}, server_command("--fd", str(number))
        process = Process(command, folder / "server.log", environment, descriptors=[number], dies_with_us=True)
    try:
        logger.info("starting Prefect's server", extra=shown())
        importlib.import_module("prefect.main")  # seconds, in which the server starts
        process.wait_until(lambda: answers(f"{url}/health") or None, _START_S, "Prefect's server")
        logger.info("Prefect's UI, while this runs: http://127.0.0.1:%d", port, extra=shown())
        yield
    finally:
        # In a thread: it would wait for nothing where an event loop runs, as in a notebook.
        sending = threading.Thread(target=_send_what_waits)
        sending.start()
        sending.join()
        del os.environ["PREFECT_API_URL"]
        process.end(10)


def server_command(*listen: str) -> list[str]:
    """Return the command line of a Prefect server. `listen`: uvicorn's options that say where it listens."""
    app = ["uvicorn", "--factory", "prefect.server.api.server:create_app", *listen]
    return [sys.executable, "-m", *app, "--log-level", "warning", "--timeout-keep-alive", str(_KEEPALIVE_S)]


def answers(url: str) -> bool:
    """Return whether a server answers 200 at `url` within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _send_what_waits() -> None:
    """Send the logs and events that Prefect sends in the background: without a server they are retried for long."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=5)


def _bound_socket() -> socket.socket:
    """Return a socket on a free port, which nobody else can take in the seconds until the server listens on it."""
    bound = socket.socket()
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it only on sockets that it makes itself
    bound.bind(("127.0.0.1", 0))
    return bound
