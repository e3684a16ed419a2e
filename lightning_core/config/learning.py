"""What a run learns from that it did not roll out, and when it stops learning."""

from __future__ import annotations

from pydantic import AwareDatetime, Field, model_validator

from lightning_core.config.section import Name, Section


class FinetuneSettings(Section):
    """Which collected rollouts the flow `finetune` looks at; `policies.sft` then chooses its examples among them."""

    runs: list[Name] = Field(default_factory=list, description="runs of this `home`; empty: this run itself")
    epochs: list[int] | None = Field(None, min_length=1, description="their training epochs; null: all that are sealed")
    since: AwareDatetime | None = Field(None, description="only rollouts that began then or later")
    until: AwareDatetime | None = Field(None, description="only rollouts that began before")
    version: str | None = Field(
        None, description="version to go on from, of every policy; null: the run's newest, v0000 where it has none"
    )

    @model_validator(mode="after")
    def _window(self) -> FinetuneSettings:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError(f"no rollout begins since {self.since} and before {self.until}; swap the two")
        return self


class AlarmSettings(Section):
    """When a run is stopped before it learns nonsense: the best version becomes current, the flow fails and says why."""

    entropy_below: float | None = Field(
        None, gt=0, description="mean entropy of an epoch's trained tokens (nats): the policy says one thing only"
    )
    kl_above: float | None = Field(
        None, gt=0, description="mean KL to the reference, with `training.beta` above 0: the policy has left its base"
    )
    reward_drop: float | None = Field(
        None, gt=0, description="mean held-out reward this far below the run's best evaluation"
    )

    @property
    def on(self) -> bool:
        return not (self.entropy_below is None and self.kl_above is None and self.reward_drop is None)
