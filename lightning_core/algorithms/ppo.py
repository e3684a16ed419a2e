"""PPO: advantages by a critic, and the critic's loss beside the policy's.

A token is worth what the group's other rollouts got (RLOO's baseline) and how much more the critic says. The policy's loss is TRL's clipped one (`training.loss_type`; Schulman et al. 2017, Proximal Policy Optimization Algorithms,
arXiv:1707.06347, equation 7). Advantages are those of GAE (Schulman et al. 2016, arXiv:1506.02438, equation 16), in
sql/tokens/gae.sql. The critic is a linear head on the hidden states that predict a token, which it reads and does not change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from lightning_core.algorithms.algorithm import Algorithm, Options, Tokens

if TYPE_CHECKING:
    import torch

# AdamW moves the critic by the same steps whatever stands here; it keeps the critic's share of the gradient's norm, which is
# clipped for both together, small.
_COEFFICIENT = 0.1


class PpoOptions(Options):
    gae_lambda: float = Field(
        1.0,
        ge=0,
        le=1,
        description="1: a token's advantage is what the rollout got, less what it was worth; below, later values stand for later rewards",
    )
    value_clip: float | None = Field(
        0.2,
        gt=0,
        description="how far a value may move from that before the epoch's first step; null: as far as it likes",
    )
    value_learning_rate: float = Field(1e-2, gt=0, description="of the critic; it follows `training.lr_schedule`")
    warmup_steps: int = Field(
        0, ge=0, description="optimizer steps at the start of the run that train the critic alone"
    )
    normalize: bool = Field(
        True, description="advantages less their mean, in standard deviations, over the epoch's tokens"
    )


class Ppo(Algorithm):
    Options = PpoOptions

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.part_learning_rate = self.options.value_learning_rate

    def select(self) -> str:
        """Return `reinforce`: every rollout trains, less those of groups below `min_spread`."""
        return "reinforce"

    def part(self, model: Any) -> torch.nn.Module:
        import torch

        class Critic(torch.nn.Module):
            """From hidden states `(N, width)` to values `(N,)`. At first all values are 0."""

            def __init__(self, width: int) -> None:
                super().__init__()
                self.width = width
                self.head = torch.nn.Linear(width, 1)
                torch.nn.init.zeros_(self.head.weight)
                torch.nn.init.zeros_(self.head.bias)

            def forward(self, hidden: torch.Tensor) -> torch.Tensor:
                # Of length 1, whatever the model's: so a learning rate means the same for all.
                features = torch.nn.functional.normalize(hidden.float(), dim=-1)
                values: torch.Tensor = self.head(features).squeeze(-1)
                return values

        return Critic(model.get_input_embeddings().weight.shape[-1])

    def score(self, tokens: Tokens) -> dict[str, torch.Tensor]:
        return {"values": self._values(tokens)}

    def weigh(self) -> str:
        return "tokens/gae"

    def loss(self, tokens: Tokens) -> torch.Tensor:
        """Return the policy's loss and the critic's: half the squared error to the returns of GAE, the larger of those with and
        without the clip (as in OpenAI Baselines' ppo2)."""
        values, returns, before = self._values(tokens), tokens.scores["returns"], tokens.scores["values"]
        error = (values - returns).square()
        if self.options.value_clip is not None:
            clipped = before + (values - before).clamp(-self.options.value_clip, self.options.value_clip)
            error = error.maximum((clipped - returns).square())
        tokens.measure("value_loss", error / 2)
        assert tokens.policy_loss is not None
        of_policy = 0.0 if tokens.step < self.options.warmup_steps else 1.0
        return of_policy * tokens.policy_loss + _COEFFICIENT * tokens.mean(error / 2)

    def _values(self, tokens: Tokens) -> torch.Tensor:
        assert tokens.part is not None
        return tokens.spread(tokens.part(tokens.hidden.detach()))
