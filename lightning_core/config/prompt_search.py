"""The search for better prompts: `lightning-flows optimize-prompts`, and between the epochs of `train`."""

from __future__ import annotations

from pydantic import Field, model_validator

from lightning_core.config.section import Section, SettingsError, is_due, require_due


class PromptSearchSettings(Section):
    """How prompts are optimised by GEPA: rollouts of training tasks, and a model that reads them and writes new versions (docs/prompts.md)."""

    reflection_model: str = Field(
        min_length=1,
        description="model that writes new versions, by the name that the gateway routes: of an upstream, a policy, or one of `frozen`",
    )
    rollouts: int = Field(300, ge=1, description="budget: rollouts of training tasks")
    tries: int = Field(
        4, ge=1, description="training tasks on which a new version has to beat the one it was made from"
    )
    compare: int = Field(
        32, ge=2, description="further training tasks, on which versions that did are compared with one another"
    )
    train_every: int = Field(
        0,
        ge=0,
        description="`train` searches before every N-th epoch, each time with this budget; in the others, and always with 0, prompts stay as they are",
    )
    train_offset: int = Field(
        0,
        ge=0,
        description="first epoch that it searches before: `train_every: 2` alone searches before even epochs, with 1 before odd ones",
    )

    @model_validator(mode="after")
    def _schedule(self) -> PromptSearchSettings:
        require_due(self.train_every, self.train_offset, "`train` would never search")
        return self

    def searches_before(self, epoch: int) -> bool:
        return is_due(epoch, self.train_every, self.train_offset)

    def require_enough(self, tasks: int) -> None:
        """Raise SettingsError where there are fewer training tasks than a search asks for."""
        if tasks < self.compare + self.tries:
            raise SettingsError(
                f"prompt_search: {tasks} training tasks are fewer than compare ({self.compare}) and tries ({self.tries}) ask for"
            )
