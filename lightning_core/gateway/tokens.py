"""Attempt tokens: what opens one attempt's scope and nothing else. Stateless, so they survive a restart.

`lf-<base64url of [rollout_id, attempt_id, mode]>.<base64url of HMAC-SHA256>`, usable as an `OPENAI_API_KEY`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["train", "evaluate"]
PREFIX = "lf-"
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class AttemptScope:
    rollout_id: str
    attempt_id: str
    mode: Mode


_verified: dict[tuple[str, str], AttemptScope] = {}  # tokens that were found good, by secret and token


def mint(secret: str, rollout_id: str, attempt_id: str, mode: Mode) -> str:
    """A token for one attempt; ValueError for an unknown mode."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r}: use one of {', '.join(get_args(Mode))}")
    payload = json.dumps([rollout_id, attempt_id, mode], separators=(",", ":")).encode()
    return f"{PREFIX}{_encode(payload)}.{_encode(_mac(secret, payload))}"


def verify(secret: str, token: str) -> AttemptScope | None:
    """The attempt a token opens; None for anything this gateway did not mint. Constant time in the signature."""
    # Python's dicts find by a keyed hash, and compare only what has the same one: that tells nothing about a token.
    known = _verified.get((secret, token))
    if known is not None or not token.startswith(PREFIX):
        return known
    first, _, second = token[len(PREFIX) :].partition(".")
    try:
        payload, signature = _decode(first), _decode(second)
    except (binascii.Error, ValueError):
        return None
    if not hmac.compare_digest(signature, _mac(secret, payload)):
        return None
    if len(_verified) >= _REMEMBERED:
        _verified.clear()
    found = _verified[secret, token] = AttemptScope(*json.loads(payload))
    return found


def is_secret(secret: str, presented: str) -> bool:
    return hmac.compare_digest(secret.encode(), presented.encode("utf-8", "replace"))


def _mac(secret: str, payload: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"lightning-attempt\0" + payload, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
