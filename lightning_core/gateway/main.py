"""Start the gateway.

    python -m lightning_core.gateway --home var --settings '{"port": 8080}'

While it listens, `<home>/services/gateway.json` says where: `{"pid", "host", "port", "url", "grpc_url"}`. Exit codes: 0 stopped
by SIGTERM or SIGINT, 2 it could not start for a reason the user can mend (one line says which).
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError

from lightning_core import home_format
from lightning_core.config import GatewaySettings
from lightning_core.errors import LightningError
from lightning_core.files import write_atomic
from lightning_core.gateway.access import Access
from lightning_core.gateway.app import App, make_app
from lightning_core.gateway.intake import Intake
from lightning_core.gateway.protocol import bounded_http
from lightning_core.gateway.revoked import Revoked
from lightning_core.gateway.room import Room
from lightning_core.gateway.routes import RouteTable
from lightning_core.gateway.service_files import PRIVATE, load_secret, services
from lightning_core.gateway.stats import Stats
from lightning_core.settings_file import explain_validation
from lightning_core.spool.spool import SpoolError, SpoolWriter

if TYPE_CHECKING:
    from lightning_core.gateway.otlp_grpc import GrpcReceiver

    StartGrpc = Callable[[], Awaitable[tuple[GrpcReceiver, str]]]

log = logging.getLogger(__name__)

_DRAIN_S = 20
_FILES = 65_536
_BODIES_IN_MEMORY = 512_000_000  # bytes; clients that come on top are asked to come again


class CannotStart(LightningError):
    """For a reason the user can mend; the message says how."""


class Server(uvicorn.Server):
    """uvicorn's, with the gRPC receiver on the same event loop; says where both listen for as long as they do."""

    def __init__(
        self, config: uvicorn.Config, app: App, home: Path, host: str, port: int, start_grpc: StartGrpc | None
    ) -> None:
        super().__init__(config)
        self._app = app
        self._file = services(home) / "gateway.json"
        self._where = {"pid": os.getpid(), "host": host, "port": port, "url": url(host, port), "grpc_url": None}
        self._start_grpc = start_grpc
        self._grpc: GrpcReceiver | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._start_grpc is not None:
            self._grpc, self._where["grpc_url"] = await self._start_grpc()
        await super().startup(sockets)
        if self.started:
            write_atomic(self._file, json.dumps(self._where).encode(), mode=PRIVATE)
            log.info("listening on %s, gRPC on %s", self._where["url"], self._where["grpc_url"])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._file.unlink(missing_ok=True)
        draining = [super().shutdown(sockets)]
        if self._grpc is not None:
            draining.append(self._grpc.stop(_DRAIN_S))
        await asyncio.gather(*draining)
        self._app.close()


async def start_grpc(access: Access, intake: Intake, host: str, port: int) -> tuple[GrpcReceiver, str]:
    """Start gRPC and return (the receiver, its URL); CannotStart where the address is taken or not ours."""
    from lightning_core.gateway.otlp_grpc import GrpcReceiver  # not needed where gRPC is off

    receiver = GrpcReceiver(access, intake)
    try:
        bound = await receiver.start(host, port)
    except OSError as error:
        raise CannotStart(f"gRPC: {error}; see `gateway.host` and `gateway.grpc_port`") from None
    return receiver, url(host, bound)


def url(host: str, port: int) -> str:
    """Return the URL at which a client on this machine reaches a gateway that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def listen(host: str, port: int, setting: str = "gateway.port") -> socket.socket:
    """Return a socket that listens; CannotStart, naming the setting, where the address is taken or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
        sock.set_inheritable(True)
        return sock
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(
                f"port {port} on {host} is in use by another process; set `{setting}` to another one, or 0 for any"
            ) from None
        raise CannotStart(f"cannot listen on {host}:{port}: {error}; see `gateway.host` and `{setting}`") from None


def _decoded_offset(home: Path) -> int:
    """Return the offset up to which the lake has decoded.

    Offsets name its rows, so none may come twice, also where the spool was removed.
    """
    try:
        offset = json.loads((home / "lake" / "manifests" / "spans.json").read_bytes())["decoded_offset"]
    except (FileNotFoundError, ValueError, KeyError):
        return 0  # the decoder says what is wrong with a manifest
    return int(offset)


def serve(home: Path, settings: GatewaySettings) -> None:
    """Run until SIGTERM or SIGINT; then drain, flush and leave. No gRPC where `settings.grpc_port` is None."""
    try:
        home_format.begin(home)
    except (home_format.HomeError, OSError) as error:
        raise CannotStart(str(error)) from None
    _allow_many_files()
    host, grpc_port = settings.host, settings.grpc_port
    sock = listen(host, settings.port)
    if grpc_port:
        listen(host, grpc_port, "gateway.grpc_port").close()  # says in one line what gRPC would say in ten
    try:
        spool = SpoolWriter(home / "spool", int(settings.spool_max_gb * 1e9), begin=_decoded_offset(home))
    except (SpoolError, OSError) as error:
        raise CannotStart(str(error)) from None
    try:
        access = Access(
            load_secret(home), Revoked(home), settings.trust_loopback, settings.host, settings.metrics_need_secret
        )
        max_body = int(settings.max_body_mb * 1e6)
        intake = Intake(spool, Stats(), max_body, Room(max(_BODIES_IN_MEMORY, 4 * max_body)))
        app = make_app(home, access, spool, RouteTable(home), intake, settings)
        grpc = None if grpc_port is None else partial(start_grpc, access, intake, host, grpc_port)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=bounded_http(settings.client_stalled_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a forwarded address must not pass for loopback
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        # uvicorn raises the signal again after it has stopped; by then everything is flushed and the exit is clean.
        server = Server(config, app, home, host, sock.getsockname()[1], grpc)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        _rarely_collect()
        server.run(sockets=[sock])
    except (ValueError, OSError) as error:
        raise CannotStart(str(error)) from None
    finally:
        spool.close()


def _rarely_collect() -> None:
    """Let the garbage collector look for cycles rarely, which takes a tenth of a call's time otherwise.

    What was imported stays, and a call leaves hardly a cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _allow_many_files() -> None:
    """Raise the limit of open files: a stream takes two sockets, and many systems begin with 1,024 files a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _settings(text: str) -> GatewaySettings:
    try:
        return GatewaySettings.model_validate_json(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(explain_validation(error, GatewaySettings)) from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lightning_core.gateway", description="model calls and OTLP spans")
    parser.add_argument("--home", type=Path, default=Path("var"), help="folder for everything a run writes")
    parser.add_argument(
        "--settings",
        type=_settings,
        default=GatewaySettings(),
        help="section gateway as JSON",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        serve(options.home.resolve(), options.settings)
    except CannotStart as error:
        log.error("the gateway cannot start: %s", error)
        return 2
    return 0
