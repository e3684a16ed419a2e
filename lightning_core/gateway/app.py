"""The routes of the gateway and what all of them share: counting, errors, 404 for everything not listed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning_core.config import GatewaySettings
from lightning_core.gateway.access import Access
from lightning_core.gateway.admin import Admin
from lightning_core.gateway.admission import Admission
from lightning_core.gateway.gateway import Gateway
from lightning_core.gateway.http import ClientGone, Handle, HttpError, Receive, Scope, Send
from lightning_core.gateway.intake import Intake
from lightning_core.gateway.opened import OpenedRollouts
from lightning_core.gateway.otlp_http import Receiver
from lightning_core.gateway.prompts import Prompts
from lightning_core.gateway.responses_store import ResponseStore, StoredResponses
from lightning_core.gateway.router import Router
from lightning_core.gateway.routes import RouteTable
from lightning_core.gateway.service_files import services
from lightning_core.gateway.stats import Stats
from lightning_core.gateway.targets import Targets
from lightning_core.gateway.upstream import Upstreams
from lightning_core.spool.spool import SpoolWriter
from lightning_core.tracking.prometheus import SignalFiles

log = logging.getLogger(__name__)


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
            started = True
            await send(message)

        try:
            status = await self._handle(scope, receive, watched)
        except HttpError as error:
            status = await error.response().send(send)
        except ClientGone:
            status = 499
        except Exception:
            # What is left is a fault of ours: the client gets OpenAI's shape, the log the traceback.
            log.exception("%s failed", self._name)
            status = 500
            if started:
                raise
            internal = HttpError(500, "internal error; the gateway's log has the details", "server_error")
            await internal.response().send(send)
        self._stats.answered(self._name, status).inc()


class App:
    """All endpoints as one ASGI app."""

    def __init__(self, stats: Stats, upstreams: Upstreams, responses: ResponseStore) -> None:
        self._stats, self._upstreams, self._responses = stats, upstreams, responses
        self._router = Router()

    def add(self, path: str, method: str, name: str, handle: Handle) -> None:
        self._router.add(path, method, Endpoint(name, handle, self._stats))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            endpoint = self._router.find(scope)
        except HttpError as error:
            self._stats.answered("unknown", await error.response().send(send)).inc()
        else:
            await endpoint(scope, receive, send)

    def close(self) -> None:
        self._upstreams.close()
        self._responses.close()


def make_app(
    home: Path, access: Access, spool: SpoolWriter, routes: RouteTable, intake: Intake, settings: GatewaySettings
) -> App:
    """Return the app; the caller has to call its `close`, and the spool's. Raises NoKey."""
    stats, upstreams = intake.stats, Upstreams()
    stats.registry.register(SignalFiles(home))
    targets = Targets(routes, settings.upstreams, settings.version_change)
    responses = ResponseStore(services(home) / "responses.sqlite")
    gateway = Gateway(
        access=access,
        settings=settings,
        spool=spool,
        targets=targets,
        upstreams=upstreams,
        admission=Admission(settings, stats),
        responses=responses,
        prompts=Prompts(home),
        stats=stats,
        room=intake.room,
        max_body=intake.max_body,
    )
    stored = StoredResponses(access, responses)
    receiver = Receiver(access, intake)
    admin = Admin(access, spool, routes, stats, intake.max_body)
    opened = OpenedRollouts(access, intake)
    app = App(stats, upstreams, responses)
    for prefix in ("/rollouts/{rollout_id}/attempts/{attempt_id}", ""):
        app.add(prefix + "/v1/chat/completions", "POST", "chat", gateway.serves("chat", "messages"))
        app.add(prefix + "/v1/completions", "POST", "completions", gateway.serves("completions", "prompt"))
        app.add(prefix + "/v1/responses", "POST", "responses", gateway.respond)
        app.add(prefix + "/v1/responses/{response_id}", "GET", "response", stored.get)
        app.add(prefix + "/v1/responses/{response_id}", "DELETE", "response", stored.delete)
        app.add(prefix + "/v1/responses/{response_id}/input_items", "GET", "response", stored.input_items)
        app.add(prefix + "/v1/responses/{response_id}/cancel", "POST", "response", stored.cancel)
        app.add(prefix + "/v1/embeddings", "POST", "embeddings", gateway.serves("embeddings", "input"))
        app.add(prefix + "/v1/models", "GET", "models", gateway.models)
        app.add(prefix + "/v1/models/{model:path}", "GET", "models", gateway.model)
        app.add(prefix + "/v1/traces", "POST", "traces", receiver.endpoint("traces"))
        app.add(prefix + "/v1/metrics", "POST", "otlp_metrics", receiver.endpoint("metrics"))
        app.add(prefix + "/v1/logs", "POST", "otlp_logs", receiver.endpoint("logs"))
    app.add("/v1/rollouts", "POST", "open", opened.open)
    app.add("/rollouts/{rollout_id}/attempts/{attempt_id}/end", "POST", "end", opened.end)
    app.add("/admin/seal", "POST", "seal", admin.answers(admin.seal))
    app.add("/admin/routes", "GET", "routes", admin.answers(admin.get_routes))
    app.add("/admin/routes", "PUT", "routes", admin.answers(admin.put_routes))
    app.add("/admin/attempts/{rollout_id}/{attempt_id}", "GET", "attempt", admin.answers(admin.attempt))
    app.add("/admin/attempts/{rollout_id}/{attempt_id}", "DELETE", "revoke", admin.answers(admin.revoke))
    app.add("/admin/openers/{key_id}", "DELETE", "revoke", admin.answers(admin.revoke_opener))
    app.add("/admin/rounds", "POST", "rounds", admin.answers(admin.begin_round))
    app.add("/admin/claims", "POST", "claims", admin.answers(admin.claim))
    app.add("/health", "GET", "health", admin.health)
    app.add("/metrics", "GET", "metrics", admin.metrics)
    return app
