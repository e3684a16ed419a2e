"""A few sampled tokens and their logprobs: what the trainer computed last, and what the server has to compute too."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

# Tokens that are asked for, and those before them that are sent along: enough to tell two versions apart, and no longer than
# a server scores at once.
ASKED, CONTEXT = 64, 448
# Two programs compute with the same weights if their logprobs differ no more than this many times what they did on the tokens
# of the first version, by which both had the same weights. Right versions differed by up to 4 times that in TF32 (ten of them),
# and 5.7 in bf16 (thirteen): after large updates, what was sampled before is unlikely, and less exact.
_TIMES = 8
_LEAST = 3e-4  # nats; of float32 on both sides, where that difference is 1e-5 or so
_MOST = 0.1  # nats; a larger difference is no rounding: other weights sampled
# Where it was not measured. Smaller updates show in the tensors.
_UNMEASURED = {"float32": 1e-3}
_UNMEASURED_HALF = 0.1  # of 16-bit numbers


class Probe(BaseModel):
    """`logprobs` (nats, at temperature 1) of the last of `token_ids`, as many as there are, each after all those before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    token_ids: list[int] = Field(min_length=2)
    logprobs: list[float]
    dtype: str = "float32"  # computed in
    noise: float | None = (
        None  # by which the server's logprobs of the tokens it sampled differed from the trainer's, on average
    )
    served_in: str | None = None  # what that server computed in

    def measured(self, before: Probe | None, mismatch: float | None, served_in: str) -> Probe:
        """With the noise that the version before has, if both programs compute as they did then; else with the `mismatch` of
        the tokens that this training began with."""
        kept = before is not None and (before.dtype, before.served_in) == (self.dtype, served_in)
        noise = before.noise if before is not None and kept else mismatch
        return self.model_copy(update={"noise": noise, "served_in": served_in})


def tolerance(probe: Probe, served_in: str) -> float:
    """Mean difference of logprobs (nats) up to which a server computes what the trainer did."""
    if probe.noise is not None and probe.noise <= _MOST and probe.served_in == served_in:
        return max(_LEAST, _TIMES * probe.noise)
    return max(_UNMEASURED.get(dtype, _UNMEASURED_HALF) for dtype in (probe.dtype, served_in))


def difference(mine: list[float], theirs: list[float]) -> float:
    """Mean absolute difference, nats; infinite for lists of unequal length."""
    if len(mine) != len(theirs) or not mine:
        return math.inf
    return sum(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / len(mine)
