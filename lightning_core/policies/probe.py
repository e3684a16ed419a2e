"""A few sampled tokens and their logprobs: what the trainer computed last, and what the server has to compute too."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

# Tokens that are asked for, and those before them that are sent along: enough to tell two versions apart, and no longer than
# a server scores at once.
ASKED, CONTEXT = 64, 448
# An error of a logit moves the logprob of a token of probability p by 1 - p of itself, so the error of the logits is what two
# programs that compute with the same weights have in common from version to version. They may differ by this many times what they
# did on the tokens of the first version, by which both had the same weights.
_TIMES = 5
_LEAST = 3e-4  # nats; of float32 on both sides, where that difference is 1e-5 or so
_MOST = 0.1  # nats; a larger difference is no rounding: other weights sampled
# Where it was not measured. Smaller updates show in the tensors.
_UNMEASURED = {"float32": 1e-3}
_UNMEASURED_HALF = 0.1  # of 16-bit numbers


class Probe(BaseModel):
    """`logprobs` (nats, at temperature 1) of the last of `token_ids`, as many as there are, each after all those before it."""

    # Lineages of older versions have the error by another measure.
    model_config = ConfigDict(frozen=True, extra="ignore")
    token_ids: list[int] = Field(min_length=2)
    logprobs: list[float]
    dtype: str = "float32"  # computed in
    logit_error: float | None = None  # nats, of the server that sampled the first version's tokens
    served_in: str | None = None  # what that server computed in

    def measured(self, before: Probe | None, metrics: Mapping[str, float], served_in: str) -> Probe:
        """Return a copy that has an error of logits: the former version's, if both programs compute as they did then.

        Else it is that of the tokens that this training began with: `mismatch`, the mean difference of their
        logprobs, over `unlikely`, the mean of 1 - p.
        """
        if before is not None and (before.dtype, before.served_in) == (self.dtype, served_in):
            error = before.logit_error
        else:
            mismatch, unlikely = metrics.get("mismatch"), metrics.get("unlikely")
            error = mismatch / unlikely if mismatch is not None and mismatch <= _MOST and unlikely else None
        return self.model_copy(update={"logit_error": error, "served_in": served_in})


def tolerance(probe: Probe, served_in: str) -> float:
    """Return the mean difference of logprobs (nats) up to which a server computes what the trainer did."""
    if probe.logit_error is not None and probe.served_in == served_in:
        unlikely = sum(-math.expm1(logprob) for logprob in probe.logprobs)
        # Of few such tokens one may be off by much, as of few draws: their number's own spread is its root.
        return max(_LEAST, _TIMES * probe.logit_error * (unlikely + math.sqrt(unlikely)) / len(probe.logprobs))
    return max(_UNMEASURED.get(dtype, _UNMEASURED_HALF) for dtype in (probe.dtype, served_in))


def difference(mine: list[float], theirs: list[float]) -> float:
    """Return the mean absolute difference, nats; infinite for lists of unequal length, and for empty ones."""
    if len(mine) != len(theirs) or not mine:
        return math.inf
    return sum(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / len(mine)
