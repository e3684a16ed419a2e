"""Who may do what: an attempt with its token, an opener with its key, the administrator with the secret, loopback for bare OTLP."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal

from lightning_core.gateway.attempt_tokens import OPENER_PREFIX, AttemptScope, Mode, is_secret, verify, verify_opener
from lightning_core.gateway.http import HttpError, Scope, header
from lightning_core.gateway.revoked import OPENER, Revoked
from lightning_core.spool.spool import Scope as ScopeName

_NAME_AND_PORT = re.compile(r"(\[.*\]|[^:]*)(:[0-9]*)?")
Sender = Literal["secret", "attempt", "nobody"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. Without an attempt the agent's own sampling is kept, as in evaluation.

    `sender` decides what the spans of the request may say; it is stored with them.
    """

    rollout_id: str | None
    attempt_id: str | None
    mode: Mode
    scope: ScopeName
    sender: Sender = "attempt"
    opened: bool = False  # its rollout, by POST /v1/rollouts
    prompts: str | None = None  # digest of those that its calls are served


def _unauthorized(message: str) -> HttpError:
    return HttpError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def bearer(scope: Scope) -> str | None:
    """Return the token of the Authorization header, or None where there is no such header."""
    return token_of(header(scope, b"authorization"))


def token_of(header: str | None) -> str | None:
    """Return the token in an Authorization header or metadata."""
    if header is None:
        return None
    kind, _, token = header.partition(" ")
    return token.strip() if kind.lower() == "bearer" else header.strip()


@dataclass(frozen=True, slots=True)
class Access:
    """Tells callers apart by the gateway's secret and the tokens that were made with it."""

    secret: str = field(repr=False)
    revoked: Revoked
    trust_loopback: bool = False  # what loopback sends without a token counts for the rollouts that it names
    host: str = "127.0.0.1"  # where the gateway listens
    metrics_need_secret: bool = False  # /health and /metrics

    def identify(self, scope: Scope) -> Caller:
        """Return who asks for a model: an attempt by its token, or the administrator. Raises HttpError 401."""
        token, named = bearer(scope), _named(scope)
        return self._by_token(token) if named is None else self._by_path(named, token)

    def identify_spans(self, scope: Scope) -> Caller:
        """Return who sends spans over HTTP: also the secret's holder, for any attempt, and loopback.

        Raises HttpError 401, or 421 as `_check_host` does.
        """
        token, named, client = bearer(scope), _named(scope), scope.get("client")
        if named is None:
            if not token:
                self._check_host(scope)
            return self.identify_sender(token, client[0] if client is not None else "")
        if token and is_secret(self.secret, token):
            return Caller(*named, "evaluate", "path", "secret")
        return self._by_path(named, token)

    def identify_sender(self, token: str | None, address: str) -> Caller:
        """Return who sends spans from this address where no path names an attempt. Raises HttpError 401."""
        if token or not is_loopback(address):
            return self._by_token(token)
        return Caller(None, None, "evaluate", "none", "attempt" if self.trust_loopback else "nobody")

    def identify_opener(self, scope: Scope) -> Caller:
        """Return who opens a rollout: the administrator, or the holder of an opener key, with its id as `attempt_id`.

        Raises HttpError 401.
        """
        token = bearer(scope)
        if token and is_secret(self.secret, token):
            return Caller(None, None, "evaluate", "none", "secret")
        key_id = verify_opener(self.secret, token) if token else None
        if key_id is None or self.revoked.has(OPENER, key_id):
            raise _unauthorized(
                "this needs an opener key (`lightning-flows token --opener` makes one), or the gateway's secret, as "
                "`Authorization: Bearer …`; a key ends, and can be revoked"
            )
        return Caller(None, key_id, "evaluate", "none")

    def require_admin(self, scope: Scope) -> None:
        """Raise HttpError 401 unless the bearer token is the gateway's secret."""
        token = bearer(scope)
        if not token or not is_secret(self.secret, token):
            raise _unauthorized("this needs the gateway's secret (`services/secret` in its home) as a bearer token")

    def require_watcher(self, scope: Scope) -> None:
        """Check who asks how the gateway is doing. Raises HttpError 401, or 421 as a browser's pages are refused."""
        token = bearer(scope)
        if self.metrics_need_secret or (token and is_secret(self.secret, token)):
            self.require_admin(scope)
        else:
            self._check_host(scope)

    def _check_host(self, scope: Scope) -> None:
        """Raise HttpError 421 for a caller that comes without a key and by a name that may be anybody's.

        A page in a browser may have its own name point to this machine, and then read what is answered.
        """
        asked = header(scope, b"host") or "localhost"  # a browser always says it
        found = _NAME_AND_PORT.fullmatch(asked)
        name = (found[1] if found else asked).strip("[]").lower()
        if name in ("localhost", self.host.lower()):
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise HttpError(
                421,
                f"{name!r:.80} is not known here: without a key come by an address, by `localhost` or by what `gateway.host` says",
                code="unknown_host",
            ) from None

    def _by_path(self, named: tuple[str, str], token: str | None) -> Caller:
        attempt = self._verify(token)
        if attempt is None or (attempt.rollout_id, attempt.attempt_id) != named:
            _refuse_opener(token)
            raise _unauthorized(
                f"this needs the token of rollout {named[0]!r}, attempt {named[1]!r}: send it as "
                "`Authorization: Bearer lf-…` (the attempt finds it in OPENAI_API_KEY; it ends some time after the attempt)"
            )
        return _caller(attempt, "path")

    def _by_token(self, token: str | None) -> Caller:
        attempt = self._verify(token)
        if attempt is not None:
            return _caller(attempt, "token")
        if token and is_secret(self.secret, token):
            return Caller(None, None, "evaluate", "none", "secret")
        _refuse_opener(token)
        raise _unauthorized(
            "no valid API key: send an attempt's token, or the gateway's secret, as `Authorization: Bearer …`"
        )

    def _verify(self, token: str | None) -> AttemptScope | None:
        attempt = verify(self.secret, token) if token else None
        return None if attempt is None or self.revoked.has(attempt.rollout_id, attempt.attempt_id) else attempt


def _caller(attempt: AttemptScope, scope: ScopeName) -> Caller:
    return Caller(
        attempt.rollout_id, attempt.attempt_id, attempt.mode, scope, opened=attempt.opened, prompts=attempt.prompts
    )


def _refuse_opener(token: str | None) -> None:
    if token and token.startswith(OPENER_PREFIX):
        raise _unauthorized(
            "this is an opener key: it opens rollouts (`POST /v1/rollouts`) and nothing else; use the token that opening one gives"
        )


def _named(scope: Scope) -> tuple[str, str] | None:
    """Return the rollout and the attempt in the request's path."""
    named = scope["path_params"]
    return (named["rollout_id"], named["attempt_id"]) if "rollout_id" in named else None


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
