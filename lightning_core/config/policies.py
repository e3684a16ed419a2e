"""What is trained, on which calls, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lightning_core.config.algorithms import ALGORITHMS
from lightning_core.config.section import Name, Section
from lightning_core.config.training import TrainingSettings

NEEDS_GROUPS = ("grpo", "dr_grpo", "rloo")
ESTIMATORS = (*NEEDS_GROUPS, "reinforce", "reinforce_pp")

Alias = Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=256)]
ANY_NAME = "*"  # the alias of every name that nobody else has


class SamplingSettings(Section):
    """What the policy samples with in training, whatever the agent asked for."""

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1, description="below 1 an error for a policy that policy gradients train")
    max_tokens: int | None = Field(None, ge=1, description="upper limit; a smaller one the agent asks for stays")


class LoraSettings(Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class SftSettings(Section):
    """Which rollouts are examples, for `algorithm: sft`."""

    best: int | None = Field(1, ge=1, description="so many of each group, those of the highest reward; null: all")
    min_reward: float | None = Field(None, description="rollouts of a smaller reward are no examples; null: no limit")
    passes: int = Field(1, ge=1, description="times the examples are trained on, each of `steps_per_epoch` steps")


class PolicySettings(Section):
    """One trainable model, and the calls that train it. Agents reach it under `model=<name>`, and under its aliases."""

    name: Name = "policy"
    model: str = Field(
        "HuggingFaceTB/SmolLM2-135M-Instruct", description="hub id, or a folder, of the weights to begin with"
    )
    aliases: list[Alias] = Field(
        default_factory=list,
        description="further model names that it answers, for agents that have one written into them: `openai/gpt-4o`; `*` is every name that nobody else has",
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
        description="calls sampled otherwise than `sampling` says (temperature, top_p, penalties, …): left out and counted, or trained all the same, flagged in `policy_calls`; `algorithm: sft` always trains them",
    )
    algorithm: str = Field(
        "grpo",
        description="`grpo`: policy gradients on `advantages`, with the losses of `training.loss_type`; `sft`: the likelihood of the rollouts that `sft` chooses",
    )
    sft: SftSettings | None = Field(None, description="for `algorithm: sft`; null there: as if empty")
    advantages: str = Field(
        "grpo",
        description="how rewards become advantages: grpo, dr_grpo, rloo, reinforce, reinforce_pp (files of sql/advantages/), or a .sql file of your own",
    )
    min_spread: float = Field(
        0.0,
        ge=0,
        description="groups whose highest and lowest return differ by less are left out, as `little_spread`: what tells their rollouts apart is not worth learning (0: only equal ones are, by estimators that compare)",
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
    rewards: dict[str, float] = Field(
        default_factory=dict,
        description="named rewards and their weights in the sum this policy is trained on; empty: what `reward` says of all",
    )
    train_every: int = Field(
        1, ge=0, description="epochs between trainings; in the others, and with 0 in all, the policy stays as it is"
    )
    train_offset: int = Field(
        0, ge=0, description="first epoch that trains it: `train_every: 2` alone is the even ones, with 1 the odd ones"
    )
    sampling: SamplingSettings = SamplingSettings()
    lora: LoraSettings | None = Field(None, description="train an adapter instead of the full weights")
    training: TrainingSettings = TrainingSettings()

    @field_validator("algorithm")
    @classmethod
    def _algorithm(cls, name: str) -> str:
        if name not in ALGORITHMS:
            raise ValueError(f"{name!r} is none of {', '.join(ALGORITHMS)}")
        return name

    @field_validator("advantages")
    @classmethod
    def _estimator(cls, name: str) -> str:
        if name not in ESTIMATORS and not name.endswith(".sql"):
            raise ValueError(f"{name!r} is neither one of {', '.join(ESTIMATORS)} nor a .sql file")
        return name

    @model_validator(mode="after")
    def _schedule(self) -> PolicySettings:
        if self.train_offset and self.train_offset >= self.train_every:
            raise ValueError(
                f"train_offset {self.train_offset} is no epoch of a round of {self.train_every}; make it smaller than train_every"
            )
        return self

    @model_validator(mode="after")
    def _ratios_are_of_one_distribution(self) -> PolicySettings:
        """The logprobs that come back are of the truncated distribution, those of the trainer of the whole one."""
        if self.sampling.top_p < 1 and self.train_every > 0 and not self.imitates:
            raise ValueError(
                f"sampling.top_p {self.sampling.top_p} cuts off what the trainer counts with, so every importance ratio of "
                f"`algorithm: {self.algorithm}` would be off; set it to 1, and lower `temperature` for tamer samples (in "
                "evaluation the agent's own top_p stays)"
            )
        return self

    def trains_in(self, epoch: int) -> bool:
        return self.train_every > 0 and epoch % self.train_every == self.train_offset

    @model_validator(mode="after")
    def _read_by_the_algorithm(self) -> PolicySettings:
        """A setting that the algorithm would ignore is a mistake. Values are looked at, not whether they were written:
        settings travel between processes with all defaults filled in."""
        algorithm = ALGORITHMS[self.algorithm]
        if self.sft is not None and not algorithm.imitates:
            raise ValueError("`sft:` is read by `algorithm: sft` alone; set that, or take `sft:` out")
        ignored = [name for name in ("advantages", "min_spread") if algorithm.estimator and self.differs(name)]
        ignored += [
            f"training.{name}"
            for name in TrainingSettings.model_fields
            if algorithm.reads is not None and name not in algorithm.reads and self.training.differs(name)
        ]
        if algorithm.reads is not None:
            ignored += [f"training.trl.{name}" for name in self.training.trl if name not in algorithm.reads]
        if ignored:
            raise ValueError(
                f"`algorithm: {self.algorithm}` ignores {', '.join(ignored)}; take it out, or use another algorithm"
            )
        return self

    @property
    def estimator(self) -> str:
        """The file of sql/advantages (or of the user's) that says which rollouts train, and how strongly."""
        return ALGORITHMS[self.algorithm].estimator or self.advantages

    @property
    def imitates(self) -> bool:
        """Whether its rows are examples, however they were sampled."""
        return ALGORITHMS[self.algorithm].imitates

    @property
    def examples(self) -> SftSettings:
        return self.sft or SftSettings()

    @property
    def passes(self) -> int:
        """Times an epoch's sequences are trained on, each of `steps_per_epoch` steps."""
        return self.examples.passes if self.imitates else 1
