"""One HTTP request. To a gateway on this machine it goes over a connection that stays open, one for each thread."""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import Any, NamedTuple


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes


def ask(
    method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float, direct: bool = False
) -> Answer:
    """Send a request and return the answer, whatever its status.

    Raises OSError or http.client.HTTPException without an answer, ValueError for no URL.

    A proxy that is set for the machine does not see what goes to this machine itself, nor anything that is `direct`. A
    request that meets a connection which has gone meanwhile is sent again, and may have been heard the first time.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    here = direct or host in ("localhost", "::1") or host.startswith("127.")
    if parts.scheme != "http" or not here:
        return _ask_far(urllib.request.Request(url, data=body, method=method, headers=dict(headers)), timeout_s)
    connection = _kept.to(host, parts.port or 80)
    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    reused = connection.sock is not None
    try:
        return _ask_near(connection, method, path, headers, body, timeout_s)
    except (ConnectionError, http.client.HTTPException):
        if not reused:
            raise
        # The gateway had closed it, or has gone; only a new connection can tell.
        return _ask_near(connection, method, path, headers, body, timeout_s)


class _Connection(http.client.HTTPConnection):
    """Hears an answer that comes before the request is sent: 413, say, after which the gateway reads no more."""

    def send(self, data: Any) -> None:
        try:
            super().send(data)
        except (BrokenPipeError, ConnectionResetError):
            if self.sock is None:
                raise
            # `getresponse` says whether there is an answer.

    def __del__(self) -> None:
        if self.sock is not None:
            self.sock.close()


class _Kept(threading.local):
    """The connections of a thread."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._connections: dict[tuple[str, int], _Connection] = {}

    def to(self, host: str, port: int) -> _Connection:
        if self._process != os.getpid():  # a fork shares its parent's sockets
            self.__init__()  # type: ignore[misc]
        found = self._connections.get((host, port))
        if found is None:
            found = self._connections[host, port] = _Connection(host, port)
        return found


_kept = _Kept()


def _ask_near(
    connection: _Connection, method: str, path: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
) -> Answer:
    connection.timeout = timeout_s
    if connection.sock is not None:
        connection.sock.settimeout(timeout_s)
    try:
        connection.request(method, path, body, dict(headers))
        reply = connection.getresponse()
        return Answer(reply.status, reply.headers, reply.read())
    except BaseException:
        connection.close()
        raise


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


def _ask_far(request: urllib.request.Request, timeout_s: float) -> Answer:
    try:
        with urllib.request.build_opener(_Http).open(request, timeout=timeout_s) as reply:
            return Answer(reply.status, reply.headers, reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())
