"""Learning from recorded rollouts, and when to stop a run."""

from __future__ import annotations

from pydantic import AwareDatetime, Field, model_validator

from lightning_core.config.section import Name, Section


class FinetuneSettings(Section):
    """Which recorded rollouts the flow `finetune` reads; `policies.sft` then chooses its examples among them."""

    runs: list[Name] = Field(default_factory=list, description="runs of this `home`; empty: this run itself")
    epochs: list[int] | None = Field(
        None, min_length=1, description="training epochs of these runs; null: all that are sealed"
    )
    since: AwareDatetime | None = Field(None, description="only rollouts that began then or later")
    until: AwareDatetime | None = Field(None, description="only rollouts that began before")
    version: str | None = Field(
        None, description="version of every policy to start from; null: the run's newest, or v0000 if it has none"
    )

    @model_validator(mode="after")
    def _window(self) -> FinetuneSettings:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError(
                f"`since` {self.since} is not before `until` {self.until}, so no rollout is between them; swap the two"
            )
        return self


class AlarmSettings(Section):
    """Limits that stop a run before it learns nonsense: the best version becomes current, and the flow fails with the reason."""

    entropy_below: float | None = Field(
        None,
        gt=0,
        description="lowest mean entropy of an epoch's trained tokens (nats); below it the policy always says the same",
    )
    kl_above: float | None = Field(
        None,
        gt=0,
        description="highest mean KL to the reference, with `training.beta` above 0; above it the policy has left its base",
    )
    reward_drop: float | None = Field(
        None, gt=0, description="how far the mean held-out reward may fall below the run's best evaluation"
    )

    @property
    def on(self) -> bool:
        return not (self.entropy_below is None and self.kl_above is None and self.reward_drop is None)
