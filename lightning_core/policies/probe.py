"""A prompt of fixed ids and its logprobs: what the trainer computed last, and what the server has to compute too."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

PROBE_LENGTH = 32  # ids at most: enough to tell two versions apart, and no longer than any context
# Mean difference of logprobs (nats) up to which two programs are taken to have computed with the same weights. Rounding is
# 1e-5 or so in float32; a layer that was not loaded is off by far more. Smaller updates show in the tensors.
_TOLERANCES = {"float32": 1e-3}
_TOLERANCE_HALF = 0.1  # of 16-bit numbers


class Probe(BaseModel):
    """`logprobs` (nats, at temperature 1) of `token_ids` from the second on, each after those before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    token_ids: list[int] = Field(min_length=2, max_length=PROBE_LENGTH)
    logprobs: list[float]
    dtype: str = "float32"  # computed in


def tolerance(*dtypes: str) -> float:
    """For those that the two programs compute in."""
    return max(_TOLERANCES.get(dtype, _TOLERANCE_HALF) for dtype in dtypes)


def difference(mine: list[float], theirs: list[float]) -> float:
    """Mean absolute difference, nats; infinite for lists of unequal length."""
    if len(mine) != len(theirs) or not mine:
        return math.inf
    return sum(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / len(mine)
