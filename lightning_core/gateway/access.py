"""Who may do what: an attempt with its token, the administrator with the secret, loopback for bare OTLP."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from lightning_core.gateway.http import HttpError, Scope, header
from lightning_core.gateway.tokens import Mode, is_secret, verify
from lightning_core.spool.spool import Scope as ScopeName


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. Without an attempt the agent's own sampling is kept, as in evaluation."""

    rollout_id: str | None
    attempt_id: str | None
    mode: Mode
    scope: ScopeName


_NOBODY = Caller(None, None, "evaluate", "none")


def _unauthorized(message: str) -> HttpError:
    return HttpError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def bearer(scope: Scope) -> str | None:
    """The token of the Authorization header, or None where there is no such header."""
    return token_of(header(scope, b"authorization"))


def token_of(header: str | None) -> str | None:
    """The token in an Authorization header or metadata."""
    if header is None:
        return None
    kind, _, token = header.partition(" ")
    return token.strip() if kind.lower() == "bearer" else header.strip()


def identify(scope: Scope, secret: str, anonymous: bool = False) -> Caller:
    """Who calls a /v1 route; `anonymous` lets loopback in without a token. Raises HttpError 401."""
    token = bearer(scope)
    rollout_id = scope["path_params"].get("rollout_id")
    attempt_id = scope["path_params"].get("attempt_id")
    if rollout_id is None:
        client = scope.get("client")
        return identify_token(token, secret, nobody=anonymous and client is not None and is_loopback(client[0]))
    attempt = verify(secret, token) if token else None
    if attempt is None or (attempt.rollout_id, attempt.attempt_id) != (rollout_id, attempt_id):
        raise _unauthorized(
            f"this needs the token of rollout {rollout_id!r}, attempt {attempt_id!r}: send it as "
            "`Authorization: Bearer lf-…` (the attempt finds it in OPENAI_API_KEY)"
        )
    return Caller(attempt.rollout_id, attempt.attempt_id, attempt.mode, "path")


def identify_token(token: str | None, secret: str, nobody: bool) -> Caller:
    """Who calls where the address names no attempt; `nobody` lets in without a token. Raises HttpError 401."""
    attempt = verify(secret, token) if token else None
    if attempt is not None:
        return Caller(attempt.rollout_id, attempt.attempt_id, attempt.mode, "token")
    if (token and is_secret(secret, token)) or (nobody and not token):
        return _NOBODY
    raise _unauthorized(
        "no valid API key: send an attempt's token, or the gateway's secret, as `Authorization: Bearer …`"
    )


def require_admin(scope: Scope, secret: str) -> None:
    """Raises HttpError 401."""
    token = bearer(scope)
    if not token or not is_secret(secret, token):
        raise _unauthorized("this needs the gateway's secret (`services/secret` in its home) as a bearer token")


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
