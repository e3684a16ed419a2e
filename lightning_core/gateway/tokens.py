"""Attempt tokens: what opens one attempt's scope and nothing else, for a while. Stateless, so they survive a restart.

`lf-<base64url of [rollout_id, attempt_id, mode, expires]>.<base64url of HMAC-SHA256>`, usable as an `OPENAI_API_KEY`; `expires`
is a Unix time in seconds. Those of before tokens ended have three parts, and are taken for as long as the secret is the same.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import time
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["train", "evaluate"]
PREFIX = "lf-"
LIFETIME_S = 30 * 86_400.0  # of a token that is made by hand, for an agent in production
GRACE_S = 3_600.0  # that an attempt's token outlives the longest it may run: exporters send again, queues wait
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class AttemptScope:
    rollout_id: str
    attempt_id: str
    mode: Mode


_verified: dict[tuple[str, str], tuple[AttemptScope, float]] = {}  # good tokens and their end, by secret and token


def mint(secret: str, rollout_id: str, attempt_id: str, mode: Mode, expires: float | None = None) -> str:
    """A token for one attempt, until `expires` (Unix time; default: LIFETIME_S from now); ValueError for an unknown mode."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r}: use one of {', '.join(get_args(Mode))}")
    until = int(time.time() + LIFETIME_S if expires is None else expires)
    payload = json.dumps([rollout_id, attempt_id, mode, until], separators=(",", ":")).encode()
    return f"{PREFIX}{_encode(payload)}.{_encode(_mac(secret, payload))}"


def verify(secret: str, token: str) -> AttemptScope | None:
    """The attempt a token opens; None for anything this gateway did not mint, and after its end. Constant time in the signature."""
    # Python's dicts find by a keyed hash, and compare only what has the same one: that tells nothing about a token.
    scope, expires = _verified.get((secret, token)) or _read(secret, token)
    return scope if time.time() < expires else None


def _read(secret: str, token: str) -> tuple[AttemptScope | None, float]:
    """What a token opens, and when it ends."""
    if not token.startswith(PREFIX):
        return None, 0.0
    first, _, second = token[len(PREFIX) :].partition(".")
    try:
        payload, signature = _decode(first), _decode(second)
    except (binascii.Error, ValueError):
        return None, 0.0
    if not hmac.compare_digest(signature, _mac(secret, payload)):
        return None, 0.0
    if len(_verified) >= _REMEMBERED:
        _verified.clear()
    rollout_id, attempt_id, mode, *until = json.loads(payload)
    found = AttemptScope(rollout_id, attempt_id, mode), float(until[0]) if until else float("inf")
    _verified[secret, token] = found
    return found


def is_secret(secret: str, presented: str) -> bool:
    return hmac.compare_digest(secret.encode(), presented.encode("utf-8", "replace"))


def _mac(secret: str, payload: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"lightning-attempt\0" + payload, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """The bytes; ValueError for any but the one way to write them (the last digit may have bits that mean nothing)."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _encode(data) != text:
        raise ValueError("not as it is written here")
    return data
