"""Listen with the page until it is ended."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from lightning_core.errors import LightningError
from lightning_core.ui.guard import Allowed

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def serve(home: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Show the lake of `home` on an address; port 0 takes a free one. Returns after Ctrl-C.

    On another address than loopback the address that is printed has a token, without which nothing is shown.
    Raises LightningError where the address cannot be had.
    """
    import uvicorn

    from lightning_core.ui.app import app

    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    with _listening(host, port) as bound:
        port = bound.getsockname()[1]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={token}" if token else "")
        say(f"the page of {home}: {address}   (Ctrl-C ends it)")
        hosts = LOOPBACK if token is None else frozenset()
        settings = uvicorn.Config(app(home, Allowed(hosts, token)), log_level="warning", access_log=False)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[bound])


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise LightningError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; take another --port"
        ) from None
    with bound:
        yield bound
