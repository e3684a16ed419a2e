"""The search for better prompts: `lightning-flows optimize-prompts`."""

from __future__ import annotations

from pydantic import Field

from lightning_core.config.section import Section


class PromptSearchSettings(Section):
    """How prompts are optimised by GEPA: rollouts of training tasks, and a model that reads them and writes new versions (docs/prompts.md)."""

    reflection_model: str = Field(
        min_length=1,
        description="model that writes new versions, by the name that the gateway routes: of an upstream, a policy, or one of `frozen`",
    )
    reflection_tokens: int = Field(2048, ge=64, description="limit of tokens of an answer of the reflecting model")
    rollouts: int = Field(300, ge=1, description="budget: rollouts of training tasks")
    tries: int = Field(
        4, ge=1, description="training tasks on which a new version has to beat the one it was made from"
    )
    compare: int = Field(
        32, ge=2, description="further training tasks, on which versions that did are compared with one another"
    )
