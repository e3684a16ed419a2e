"""Who is let in: the right `Host`, no other site's pages, and on an address that others reach whoever has the token."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COOKIE = "lightning-page"
_HEADERS = {
    # No script and no style but our own, and nothing from elsewhere: what a span holds stays text.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Allowed:
    """`hosts`: names that a browser may call the page by, empty for any; `token`: asked for where it is one."""

    hosts: frozenset[str]
    token: str | None = None


def middleware(allowed: Allowed) -> list[Middleware]:
    return [Middleware(_Guard, allowed=allowed)]


class _Guard:
    def __init__(self, app: ASGIApp, allowed: Allowed) -> None:
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._refusal(Request(scope)) or self.app
        await answer(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> PlainTextResponse | RedirectResponse | None:
        host = request.url.hostname or ""
        if self.allowed.hosts and host not in self.allowed.hosts:
            return PlainTextResponse(f"no page for the host {host!r}: open it as it was printed\n", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("this page only reads\n", 405)
        # A link from elsewhere may lead here (navigate, to a page); what another site's script or image asks for is refused.
        if (
            request.headers.get("sec-fetch-site") == "cross-site"
            and request.headers.get("sec-fetch-mode") != "navigate"
        ):
            return PlainTextResponse("asked for by another site\n", 403)
        return self._without_token(request)

    def _without_token(self, request: Request) -> PlainTextResponse | RedirectResponse | None:
        token = self.allowed.token
        if token is None:
            return None
        given = request.query_params.get("token")
        if given is not None and hmac.compare_digest(given.encode(), token.encode()):
            clean = request.url.remove_query_params("token")
            answer = RedirectResponse(f"{clean.path}?{clean.query}" if clean.query else clean.path, 303)
            answer.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
            return answer
        if hmac.compare_digest(request.cookies.get(_COOKIE, "").encode(), token.encode()):
            return None
        return PlainTextResponse(
            "open the page by the address that `lightning-flows ui` printed: it has the token\n", 401
        )
