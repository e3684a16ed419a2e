"""What an algorithm is: a class of five methods, each with a default. The defaults together are `grpo`.

From an epoch's rollouts to a step of the optimizer:

1. `select` names SQL that says which rollouts train, and how strongly (sql/advantages). What it keeps is in table `sequences`.
2. `part` makes what is trained beside the policy, a critic for example.
3. `score` gives numbers to each token that is trained, before the epoch's first step: values, or what a teacher says.
4. `weigh` names SQL that makes each token's advantage of these numbers. Both are rows of table `token_scores`.
5. `loss` is the loss of a micro-batch.

An object is made wherever settings are read, and in the training process; import torch there alone, inside of `part`, `score` and `loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    import torch


class Options(BaseModel):
    """Settings of an algorithm's own, `policies[].options`. Subclass it where there are any."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass
class Tokens:
    """The trained tokens of one micro-batch.

    Tensors are `(B, T)`, a sequence a row, and 0 where no token is trained, except `hidden`, `(N, width)`: sequences that share
    a token share its row. `scores` is what `score` and `weigh` made of each token, by name.
    """

    sequences: list[Any]  # lightning_core.training.dataset.Sequence
    logprobs: torch.Tensor
    entropies: torch.Tensor
    hidden: torch.Tensor  # of the last layer, where it predicts the token
    spread: Callable[[torch.Tensor], torch.Tensor]  # from `(N,)`, computed of `hidden`, to `(B, T)`
    part: torch.nn.Module | None
    advantages: torch.Tensor | None = None  # None while tokens are scored, as for those below
    weights: torch.Tensor | None = None  # of each token in the loss
    total: float = 1.0  # what the weighted sum over the step is divided by
    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    policy_loss: torch.Tensor | None = None  # TRL's, of `training.loss_type`
    step: int = 0  # optimizer steps that the run took before this one
    measured: dict[str, torch.Tensor] = field(default_factory=dict)
    other_logprobs: Callable[[Any], torch.Tensor] | None = None

    def mean(self, losses: torch.Tensor) -> torch.Tensor:
        """Return this micro-batch's part of the step's mean over tokens, weighed as `training.loss_type` says."""
        assert self.weights is not None
        mean: torch.Tensor = (losses * self.weights).sum() / self.total
        return mean

    def measure(self, name: str, values: torch.Tensor) -> None:
        """Report the mean of `values` `(B, T)` over the step's trained tokens as a metric and signal."""
        self.measured[name] = values.detach()

    def logprobs_by(self, model: Any) -> torch.Tensor:
        """Return the log-probabilities that another model with the same tokenizer gives these tokens, without gradients."""
        assert self.other_logprobs is not None
        return self.other_logprobs(model)


class Algorithm:
    """How a policy is trained. Subclass it, and name the class in `policies[].algorithm`.

    `Options` is the model of `policies[].options`. `imitates`: its rows are examples, sampled in any way. `reads`: the settings of
    `training` (and of its `trl`) beside which others are an error; None: all. `part_learning_rate`: of the part, where it
    has another than the policy; it follows the same schedule.
    """

    Options: ClassVar[type[BaseModel]] = Options
    imitates: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...] | None] = None
    part_learning_rate: float | None = None

    def __init__(self, policy: Any) -> None:
        """Take the policy's settings (config/policies.py). Raises ValueError for options that the algorithm does not know."""
        self.policy = policy
        try:
            self.options: Any = self.Options.model_validate(policy.options)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            known = ", ".join(self.Options.model_fields) or "none"
            raise ValueError(
                f"`options` of `algorithm: {policy.algorithm}`: {problems}; it knows the options: {known}"
            ) from None

    def select(self) -> str:
        """Return the name of a file of sql/advantages, or the path of a .sql file: from table `returns` to one row a rollout with
        `advantage` or `left_out` (docs/credit.md)."""
        estimator: str = self.policy.advantages
        return estimator

    def part(self, model: Any) -> torch.nn.Module | None:
        """Make what is trained beside `model`. Its weights go on from epoch to epoch, and are no part of the version that is served."""
        return None

    def score(self, tokens: Tokens) -> dict[str, torch.Tensor]:
        """Return numbers of each token by name, each `(B, T)`. Called where `weigh` names a file, without gradients, once for
        each sequence and epoch."""
        return {}

    def weigh(self) -> str | Path | None:
        """Return the name of a file of sql/ or the path of one: SQL from `token_scores` to `advantages`.

        It reads `token_scores` (sequence_id, `logprobs` by the weights that the epoch begins with, one list a score), `sequence_calls` (sql/tokens/sequence_calls.sql),
        `sequences`, and `options` (one row), and returns one row a sequence: `sequence_id`, `advantages` and any other lists with one
        entry a trained token, which `loss` finds in `scores`. Columns that are no list, the same in every row, become metrics.
        None: each token has the advantage of its rollout.
        """
        return None

    def loss(self, tokens: Tokens) -> torch.Tensor:
        """Return the loss of a micro-batch, as its part of the step's."""
        assert tokens.policy_loss is not None
        return tokens.policy_loss
