"""Attempt tokens: what opens one attempt's scope and nothing else, for a while. Stateless, so they survive a restart.

`lf-<base64url of [rollout_id, attempt_id, mode, expires]>.<base64url of HMAC-SHA256>`, usable as an `OPENAI_API_KEY`; `expires`
is a Unix time in seconds. Those of before tokens ended have three parts, and are taken for as long as the secret is the same.
A fifth part, "opened", says that the rollout was opened over HTTP (lightning_core/gateway/opened.py), so that its agent ends it; a
sixth is the digest of the prompts that its calls are served (lightning_core/prompts/served.py).

Opener keys: what opens such rollouts and does nothing else, for a while. `lfo-<base64url of [key id, expires]>.<HMAC>`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

Mode = Literal["train", "evaluate"]
PREFIX = "lf-"
OPENER_PREFIX = "lfo-"
LIFETIME_S = 30 * 86_400.0  # of a token that is made by hand, for an agent in production
GRACE_S = 3_600.0  # that an attempt's token outlives the longest it may run: exporters send again, queues wait
_REMEMBERED = 4096
_ATTEMPT, _OPENER = b"lightning-attempt\0", b"lightning-opener\0"  # what a signature is of: none is taken for the other


@dataclass(frozen=True, slots=True)
class AttemptScope:
    rollout_id: str
    attempt_id: str
    mode: Mode
    opened: bool = False  # by POST /v1/rollouts: its agent says how it ended
    prompts: str | None = None  # digest of those that its calls are served; None: as the agent sends them


_verified: dict[tuple[str, str], tuple[AttemptScope, float]] = {}  # good tokens and their end, by secret and token


def mint(
    secret: str,
    rollout_id: str,
    attempt_id: str,
    mode: Mode,
    expires: float | None = None,
    opened: bool = False,
    prompts: str | None = None,
) -> str:
    """Make a token for one attempt, until `expires` (Unix time; default: LIFETIME_S from now).

    Raises ValueError for an unknown mode.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r}: use one of {', '.join(get_args(Mode))}")
    parts = [rollout_id, attempt_id, mode, _until(expires)]
    more = ["opened" if opened else "", *([prompts] if prompts else [])]
    return _sealed(secret, PREFIX, _ATTEMPT, parts + more if any(more) else parts)


def verify(secret: str, token: str) -> AttemptScope | None:
    """Return the attempt a token opens; None for anything this gateway did not mint, and after its end.

    Constant time in the signature.
    """
    # Python's dicts find by a keyed hash, and compare only what has the same one: that tells nothing about a token.
    scope, expires = _verified.get((secret, token)) or _read(secret, token)
    return scope if time.time() < expires else None


def mint_opener(secret: str, key_id: str, expires: float | None = None) -> str:
    """Make a key that may open rollouts, until `expires` (Unix time; default: LIFETIME_S from now).

    `key_id` names it to revoke it.
    """
    return _sealed(secret, OPENER_PREFIX, _OPENER, [key_id, _until(expires)])


def verify_opener(secret: str, key: str) -> str | None:
    """Return the id of an opener key; None for anything else, and after its end. Constant time in the signature."""
    parts = _unsealed(secret, OPENER_PREFIX, _OPENER, key)
    if parts is None:
        return None
    key_id, until = parts
    return str(key_id) if time.time() < until else None


def _read(secret: str, token: str) -> tuple[AttemptScope | None, float]:
    """Return what a token opens, and when it ends."""
    parts = _unsealed(secret, PREFIX, _ATTEMPT, token)
    if parts is None:
        return None, 0.0
    if len(_verified) >= _REMEMBERED:
        _verified.clear()
    rollout_id, attempt_id, mode, *more = parts
    scope = AttemptScope(rollout_id, attempt_id, mode, more[1:2] == ["opened"], more[2] if len(more) > 2 else None)
    found = scope, float(more[0]) if more else float("inf")
    _verified[secret, token] = found
    return found


def is_secret(secret: str, presented: str) -> bool:
    return hmac.compare_digest(secret.encode(), presented.encode("utf-8", "replace"))


def _until(expires: float | None) -> int:
    return int(time.time() + LIFETIME_S if expires is None else expires)


def _sealed(secret: str, prefix: str, label: bytes, parts: list[Any]) -> str:
    payload = json.dumps(parts, separators=(",", ":")).encode()
    return f"{prefix}{_encode(payload)}.{_encode(_mac(secret, label, payload))}"


def _unsealed(secret: str, prefix: str, label: bytes, text: str) -> list[Any] | None:
    """Return the parts of what was sealed with this label; None for any other text."""
    if not text.startswith(prefix):
        return None
    first, _, second = text[len(prefix) :].partition(".")
    try:
        payload, signature = _decode(first), _decode(second)
    except (binascii.Error, ValueError):
        return None
    if not hmac.compare_digest(signature, _mac(secret, label, payload)):
        return None
    return list(json.loads(payload))


def _mac(secret: str, label: bytes, payload: bytes) -> bytes:
    return hmac.digest(secret.encode(), label + payload, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Return the bytes; ValueError for any but the one way to write them.

    The last digit may have bits that mean nothing.
    """
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encode(data) != text:
        raise ValueError("not as it is written here")
    return data
