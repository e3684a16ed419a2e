"""Which code trained a version."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from lightning_core import algorithms
from lightning_core.config import PolicySettings
from lightning_core.lake import sql
from lightning_core.loading import code_digest
from lightning_core.training.weighing import weighing_sql


@cache
def training_code() -> str:
    """Return a digest of the source of trainer and algorithms: a version trained by other code is another version."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *(here.parent / "algorithms").glob("*.py")])
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]


def algorithm_code(policy: PolicySettings) -> list[str]:
    """Return what is read of a policy's algorithm beside that: a digest of a class of the user's own, and the SQL that
    weighs tokens, with what it reads."""
    weighing = policy.made_algorithm.weigh()
    own = [code_digest(policy.algorithm)] if algorithms.is_own(policy.algorithm) else []
    return own if weighing is None else [*own, weighing_sql(weighing), sql.text("tokens/sequence_calls")]
