"""The proof that spans are an attempt's own, for exporters that pass on resource attributes and no token.

`<expires>.<HMAC-SHA256 in hex>`, of the rollout and the attempt that the attributes beside it name; `expires` is a Unix time in
seconds. It opens nothing: resource attributes go to every exporter that an agent has, also those of other companies.
"""

from __future__ import annotations

import hmac
import json


def prove(secret: str, rollout_id: str, attempt_id: str, expires: float) -> str:
    """Return the proof for an attempt; it holds until `expires`."""
    until = int(expires)
    payload = json.dumps([rollout_id, attempt_id, until], separators=(",", ":")).encode()
    mac = hmac.digest(secret.encode(), b"lightning-proof\0" + payload, "sha256")
    return f"{until}.{mac.hex()}"


def proves(secret: str, proof: str, rollout_id: str, attempt_id: str, at: float) -> bool:
    """Return whether `proof` proves that spans received at `at` (Unix time) are this attempt's."""
    until = proof.partition(".")[0]
    if not (until.isascii() and until.isdigit() and len(until) < 16 and at < int(until)):
        return False
    wanted = prove(secret, rollout_id, attempt_id, int(until))
    return hmac.compare_digest(wanted.encode(), proof.encode("utf-8", "replace"))
