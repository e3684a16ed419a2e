"""What flows and operators ask of the gateway: sealing, routes, attempts, health, metrics."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from lightning_core.gateway.access import Access
from lightning_core.gateway.http import Handle, HttpError, Receive, Response, Scope, Send, json_response, read_body
from lightning_core.gateway.json_body import read_value
from lightning_core.gateway.revoked import OPENER
from lightning_core.gateway.routes import RoutesError, RouteTable, parse_routes
from lightning_core.gateway.stats import Stats
from lightning_core.spool.spool import SpoolWriter

_ROUNDS_KEPT = 64


class Claims:
    """The newest round of each name, and the rollouts of it that were begun.

    On a cluster a shard may be run again by its engine, or go on after its flow was killed. Kept in memory: after a restart of
    the gateway nothing is granted until a flow begins a round again, so that what may have been begun before is looked up in
    the lake first.
    """

    def __init__(self) -> None:
        self._begun: OrderedDict[str, tuple[str, set[str]]] = OrderedDict()

    def begin(self, name: str, round_id: str) -> None:
        """Make `round_id` the round of that name from now on: nothing is granted to those before it."""
        self._begun.pop(name, None)
        self._begun[name] = (round_id, set())
        if len(self._begun) > _ROUNDS_KEPT:
            self._begun.popitem(last=False)

    def grant(self, name: str, round_id: str, rollout_id: str) -> bool:
        """Return whether the rollout may be begun: once in a round, and only in the newest round of that name."""
        newest, begun = self._begun.get(name, ("", set()))
        if newest != round_id or rollout_id in begun:
            return False
        begun.add(rollout_id)
        return True


@dataclass(frozen=True, slots=True)
class Admin:
    access: Access
    spool: SpoolWriter
    routes: RouteTable
    stats: Stats
    max_body: int
    claims: Claims = field(default_factory=Claims)

    def answers(self, work: Callable[[Scope, Receive], Awaitable[Any]]) -> Handle:
        """Return a handler for the administrator alone, who gets what `work` returns as JSON."""

        async def handle(scope: Scope, receive: Receive, send: Send) -> int:
            self.access.require_admin(scope)
            return await json_response(await work(scope, receive)).send(send)

        return handle

    async def seal(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Return `{"offset": n}`: everything acknowledged so far lies below n."""
        return {"offset": self.spool.end()}

    async def get_routes(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        return self.routes.current.model_dump(mode="json")

    async def put_routes(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        try:
            routes = parse_routes(await read_body(scope, receive, self.max_body))
            self.routes.replace(routes)
        except RoutesError as error:
            raise HttpError(400, f"routes: {error}") from None
        except OSError as error:
            raise HttpError(503, f"the routes could not be stored: {error}", "server_error") from None
        return routes.model_dump(mode="json")

    async def attempt(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        parts = scope["path_params"]
        return self.stats.peek(parts["rollout_id"], parts["attempt_id"])

    async def revoke(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Refuse the attempt's tokens from now on."""
        parts = scope["path_params"]
        return self._revoke(parts["rollout_id"], parts["attempt_id"])

    async def revoke_opener(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Refuse the opener key of this id from now on; what it opened stays open."""
        return self._revoke(OPENER, scope["path_params"]["key_id"])

    def _revoke(self, rollout_id: str, attempt_id: str) -> dict[str, Any]:
        try:
            self.access.revoked.add(rollout_id, attempt_id)
        except OSError as error:
            raise HttpError(503, f"it could not be stored: {error}", "server_error") from None
        return {}

    async def begin_round(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Begin a round, by `{"name", "round"}`: its claims are granted, those of other rounds of that name no more."""
        self.claims.begin(*await self._texts(scope, receive, "name", "round"))
        return {}

    async def claim(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Answer `{"name", "round", "rollout_id"}` with `{"granted": …}`: whether the rollout may be begun."""
        return {"granted": self.claims.grant(*await self._texts(scope, receive, "name", "round", "rollout_id"))}

    async def _texts(self, scope: Scope, receive: Receive, *keys: str) -> list[str]:
        try:
            body = await read_value(await read_body(scope, receive, self.max_body))
            return [str(body[key]) for key in keys]
        except (TypeError, KeyError):
            raise HttpError(400, f"a JSON object with {', '.join(keys)} is needed") from None

    async def health(self, scope: Scope, receive: Receive, send: Send) -> int:
        self.access.require_watcher(scope)
        body = {
            "status": "ok",
            "pid": os.getpid(),
            "spool_offset": self.spool.end(),
            "spool_bytes": self.spool.kept_bytes(),
            "refused_otlp": self.stats.all.refused_otlp,
            "rejected_spans": self.stats.all.rejected_spans,
            "serving": {model: calls for model, calls in self.stats.serving.items() if calls},
            "versions": {name: route.version for name, route in self.routes.current.policies.items()},
        }
        return await json_response(body).send(send)

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> int:
        self.access.require_watcher(scope)
        self.stats.spool_offset.set(self.spool.end())
        self.stats.spool_kept.set(self.spool.kept_bytes())
        text = Response(self.stats.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
        return await text.send(send)
