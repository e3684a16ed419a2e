"""Which code trained a version."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


@cache
def training_code() -> str:
    """Return a digest of the source of trainer and algorithms: a version trained by other code is another version."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *(here.parent / "algorithms").glob("*.py")])
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]
