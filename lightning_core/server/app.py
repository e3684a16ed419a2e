"""The routes of the server and what all of them share: counting, errors, 404 for everything not listed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as PlainRoute
from starlette.types import Receive, Scope, Send

from lightning_core.config import GatewaySettings
from lightning_core.lake.spool import SpoolWriter
from lightning_core.server.admin import Admin
from lightning_core.server.admission import Admission
from lightning_core.server.drift import DriftMemory
from lightning_core.server.files import services
from lightning_core.server.gateway import Gateway
from lightning_core.server.http import ClientGone, HttpError
from lightning_core.server.intake import Intake
from lightning_core.server.otlp_http import Receiver
from lightning_core.server.responses_store import ResponseStore
from lightning_core.server.routes import RouteTable
from lightning_core.server.stats import Stats
from lightning_core.server.targets import Targets
from lightning_core.server.upstream import Upstreams

log = logging.getLogger(__name__)

Handle = Callable[[Scope, Receive, Send], Awaitable[int]]
ATTEMPT = "/rollouts/{rollout_id}/attempts/{attempt_id}"


class HttpRoute(PlainRoute):
    """A route of which a part may hold an escaped slash (`%2F`), as ids of rollouts do that are made of a file's name."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw = scope.get("raw_path") or b""
        if b"%" in raw:
            match, child = super().matches({**scope, "path": raw.decode("latin-1")})
            if match is not Match.NONE:
                child["path_params"] = {key: unquote(value) for key, value in child["path_params"].items()}
                return match, child
        return super().matches(scope)


class Endpoint:
    """A handler as an ASGI app: turns HttpError into OpenAI's error shape, and counts the answer."""

    def __init__(self, name: str, handle: Handle, stats: Stats) -> None:
        self._name = name
        self._handle = handle
        self._stats = stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Any) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            status = await self._handle(scope, receive, watched)
        except HttpError as error:
            status = error.status
            await error.response()(scope, receive, send)
        except ClientGone:
            status = 499
        except Exception:
            # What is left is a fault of ours: the client gets OpenAI's shape, the log the traceback.
            log.exception("%s failed", self._name)
            status = 500
            if started:
                raise
            internal = HttpError(500, "internal error; the server's log has the details", "server_error")
            await internal.response()(scope, receive, send)
        self._stats.requests.labels(self._name, str(status)).inc()


async def _wrong_method(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (405) in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    refusal = HttpError(
        error.status_code, f"{request.method} {request.url.path}: {error.detail}", headers=error.headers
    )
    return refusal.response()


async def _not_found(scope: Scope, receive: Receive, send: Send) -> int:
    raise HttpError(404, f"Unknown request URL: {scope['method']} {scope['path']}", code="unknown_url")


def make_app(
    home: Path, secret: str, spool: SpoolWriter, routes: RouteTable, intake: Intake, settings: GatewaySettings
) -> Starlette:
    """The ASGI app; it closes its connections on shutdown, the spool is the caller's to close. Raises NoKey."""
    stats, upstreams = intake.stats, Upstreams()
    targets = Targets(routes, settings.upstreams, settings.version_change)
    responses = ResponseStore(services(home) / "responses.sqlite")
    gateway = Gateway(
        secret=secret,
        settings=settings,
        spool=spool,
        targets=targets,
        upstreams=upstreams,
        admission=Admission(settings, stats),
        responses=responses,
        drift=DriftMemory(),
        stats=stats,
        max_body=intake.max_body,
    )
    receiver = Receiver(secret, intake)
    admin = Admin(secret, spool, routes, stats, intake.max_body)
    http_routes: list[HttpRoute] = []

    def add(path: str, methods: list[str], name: str, handle: Handle) -> None:
        route = HttpRoute(path, Endpoint(name, handle, stats), methods=methods)
        http_routes.append(route)

    for prefix in (ATTEMPT, ""):
        add(prefix + "/v1/chat/completions", ["POST"], "chat", gateway.chat)
        add(prefix + "/v1/completions", ["POST"], "completions", gateway.completion)
        add(prefix + "/v1/responses", ["POST"], "responses", gateway.respond)
        add(prefix + "/v1/responses/{response_id}", ["GET"], "response", gateway.response)
        add(prefix + "/v1/responses/{response_id}", ["DELETE"], "response", gateway.delete_response)
        add(prefix + "/v1/embeddings", ["POST"], "embeddings", gateway.embeddings)
        add(prefix + "/v1/models", ["GET"], "models", gateway.models)
        add(prefix + "/v1/models/{model:path}", ["GET"], "models", gateway.model)
        add(prefix + "/v1/traces", ["POST"], "traces", receiver.traces)
        add(prefix + "/v1/metrics", ["POST"], "otlp_metrics", receiver.metrics)
        add(prefix + "/v1/logs", ["POST"], "otlp_logs", receiver.logs)
    add("/admin/seal", ["POST"], "seal", admin.seal)
    add("/admin/routes", ["GET"], "routes", admin.get_routes)
    add("/admin/routes", ["PUT"], "routes", admin.put_routes)
    add("/admin/attempts/{rollout_id}/{attempt_id}", ["GET"], "attempt", admin.attempt)
    add("/health", ["GET"], "health", admin.health)
    add("/metrics", ["GET"], "metrics", admin.metrics)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        yield
        await upstreams.close()
        responses.close()

    app = Starlette(routes=http_routes, lifespan=lifespan, exception_handlers={HTTPException: _wrong_method})
    app.router.redirect_slashes = False
    app.router.default = Endpoint("unknown", _not_found, stats)
    return app
