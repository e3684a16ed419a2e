"""What a client may ask of a response that was stored: itself, the items of its input, its removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import orjson

from lightning_core.gateway.access import Access
from lightning_core.gateway.http import HttpError, Receive, Response, Scope, Send, invalid, json_response, whole_number
from lightning_core.gateway.responses_store import ResponseStore

_MOST_ITEMS, _ITEMS = 100, 20


@dataclass(frozen=True, slots=True)
class StoredResponses:
    """The routes under `/v1/responses/{response_id}`; each knows the responses of the caller's attempt only."""

    access: Access
    store: ResponseStore

    async def get(self, scope: Scope, receive: Receive, send: Send) -> int:
        if _query(scope).get("stream", "").lower() == "true":
            raise HttpError(400, "`stream` is not supported here", code="unsupported_parameter", param="stream")
        return await Response(self._find(scope)[0]).send(send)

    async def input_items(self, scope: Scope, receive: Receive, send: Send) -> int:
        """The items of that request's `input`, without those of the responses before it; newest first unless `order=asc`."""
        items, query = orjson.loads(self._find(scope)[1]), _query(scope)
        if query.get("order", "desc") != "asc":
            items.reverse()
        if (after := query.get("after")) is not None:
            places = [place for place, item in enumerate(items, 1) if item["id"] == after]
            if not places:
                raise invalid("after", f"no item {after!r} in this list")
            items = items[places[0] :]
        shown = items[: whole_number(query.get("limit", str(_ITEMS)), "limit", 1, _MOST_ITEMS)]
        ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
        page = {"object": "list", "data": shown, **ends, "has_more": len(items) > len(shown)}
        return await json_response(page).send(send)

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> int:
        self._find(scope)
        raise HttpError(400, "Cannot cancel a synchronous response.")

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> int:
        self._find(scope)
        response_id = scope["path_params"]["response_id"]
        self.store.delete(response_id, self.access.identify(scope))
        return await json_response({"id": response_id, "object": "response", "deleted": True}).send(send)

    def _find(self, scope: Scope) -> tuple[bytes, bytes]:
        caller, response_id = self.access.identify(scope), scope["path_params"]["response_id"]
        found = self.store.response(response_id, caller)
        if found is None:
            raise HttpError(404, f"Response with id {response_id!r} not found.", code="response_not_found")
        return found


def _query(scope: Scope) -> dict[str, Any]:
    return {key: values[-1] for key, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
