"""What is trained, on which calls, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lightning_core.config.section import Name, Section

NEEDS_GROUPS = ("grpo", "dr_grpo", "rloo")
ESTIMATORS = (*NEEDS_GROUPS, "reinforce", "reinforce_pp")


class SamplingSettings(Section):
    """What the policy samples with in training, whatever the agent asked for."""

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, description="upper limit; a smaller one the agent asks for stays")


class LoraSettings(Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class TrainingSettings(Section):
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    steps_per_epoch: int = Field(1, ge=1, description="optimizer steps the groups of an epoch are spread over")
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = Field("dapo", description="TRL's GRPO loss")
    epsilon: float = Field(0.2, gt=0, description="clip range of the ratio to the sampling logprobs")
    epsilon_high: float | None = Field(None, gt=0)
    beta: float = Field(0.0, ge=0, description="weight of the KL to the base model")
    packing: Literal["none", "tree"] = Field(
        "tree", description="`tree`: tokens that sequences of a group share are computed once"
    )
    tokens_per_micro_batch: int = Field(
        1024, ge=64, description="tokens (unique ones, where packed) in one forward pass"
    )
    max_sequence_tokens: int = Field(4096, ge=16, description="longer sequences are left out and counted")
    bf16: bool = False
    gradient_checkpointing: bool = False


class PolicySettings(Section):
    """One trainable model, and the calls that train it. Agents reach it under `model=<name>`."""

    name: Name = "policy"
    model: str = Field(
        "HuggingFaceTB/SmolLM2-135M-Instruct", description="hub id, or a folder, of the weights to begin with"
    )
    agent_match: str = Field(
        "",
        description="regex (RE2, unanchored) on the nearest named agent of a call; empty matches all. `@module:function` (called with the last epoch's agents) or `sql:SELECT …` (over the catalog) gives it at run time",
    )
    agent_exclude: str | None = Field(None, description="regex (RE2): agents taken out again")
    ambiguous: Literal["drop", "train"] = Field(
        "drop",
        description="calls that several agents could have made: left out and counted, or trained all the same; with `agent_match` or `agent_exclude` where those take every one of these agents",
    )
    other_sampling: Literal["drop", "train"] = Field(
        "drop",
        description="calls sampled otherwise than `sampling` says (temperature, top_p, penalties, …): left out and counted, or trained all the same, flagged in `policy_calls`",
    )
    advantages: str = Field(
        "grpo",
        description="how rewards become advantages: grpo, dr_grpo, rloo, reinforce, reinforce_pp (files of sql/advantages/), or a .sql file of your own",
    )
    merge: Literal["prefix", "per_call"] = Field(
        "prefix",
        description="`prefix`: calls whose prompt extends the last are one sequence; `per_call`: none are merged",
    )
    too_long: Literal["drop_calls", "drop_rollout"] = Field(
        "drop_calls",
        description="past training.max_sequence_tokens: whole calls are left out from a sequence's end, or the rollout is",
    )
    max_version_lag: int | None = Field(
        None, ge=0, description="calls sampled more versions ago than this are left out; null: all are taken"
    )
    sampling: SamplingSettings = SamplingSettings()
    lora: LoraSettings | None = Field(None, description="train an adapter instead of the full weights")
    training: TrainingSettings = TrainingSettings()

    @field_validator("advantages")
    @classmethod
    def _estimator(cls, name: str) -> str:
        if name not in ESTIMATORS and not name.endswith(".sql"):
            raise ValueError(f"{name!r} is neither one of {', '.join(ESTIMATORS)} nor a .sql file")
        return name
