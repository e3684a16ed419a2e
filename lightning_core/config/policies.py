"""What is trained, on which calls, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lightning_core import algorithms
from lightning_core.config.section import Name, Section, is_due, known_or_sql, require_due
from lightning_core.config.training import TrainingSettings
from lightning_core.config.trl import OF_THE_OPTIMIZER

if TYPE_CHECKING:
    from lightning_core.algorithms import Algorithm

NEEDS_GROUPS = ("grpo", "dr_grpo", "rloo", "counterfactual")
ESTIMATORS = (*NEEDS_GROUPS, "reinforce", "reinforce_pp")

Alias = Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=256)]
ANY_NAME = "*"  # the alias of every name that nobody else has


class SamplingSettings(Section):
    """Sampling in training, whatever the agent asked for."""

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1, description="below 1 is an error for a policy that policy gradients train")
    max_tokens: int | None = Field(None, ge=1, description="upper limit; if the agent asks for less, that stays")


class LoraSettings(Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class SftSettings(Section):
    """Which rollouts are examples, for `algorithm: sft`."""

    best: int | None = Field(
        1, ge=1, description="number of rollouts per group, those of the highest reward; null: all"
    )
    min_reward: float | None = Field(None, description="rollouts with a smaller reward are no examples; null: no limit")
    passes: int = Field(
        1, ge=1, description="how often the examples are trained on, each time in `steps_per_epoch` steps"
    )
    without_ids: Literal["drop", "tokenize"] = Field(
        "drop",
        description="calls without token ids, of models elsewhere: left out and counted, or tokenized by the policy's chat template and flagged in `sequences`; imported chats always are",
    )


class PolicySettings(Section):
    """One trainable model, and the calls that train it. Agents reach it under `model=<name>`, and under its aliases."""

    name: Name = "policy"
    model: str = Field("HuggingFaceTB/SmolLM2-135M-Instruct", description="hub id or folder of the initial weights")
    aliases: list[Alias] = Field(
        default_factory=list,
        description="further model names under which it answers, for agents with a name written into them: `openai/gpt-4o`; `*` is every name that nothing else has",
    )
    agent_match: str = Field(
        "",
        description="regex (RE2, unanchored) on the nearest named agent of a call; empty matches all. `@module:function` (called with the last epoch's agents) or `sql:SELECT …` (over the catalog) computes it at run time",
    )
    agent_exclude: str | None = Field(
        None, description="regex (RE2): agents that are left out although `agent_match` matches them"
    )
    ambiguous: Literal["drop", "train"] = Field(
        "drop",
        description="calls that several agents could have made: left out and counted, or trained on nevertheless; with `agent_match` or `agent_exclude` only if those take every one of these agents",
    )
    other_sampling: Literal["drop", "train"] = Field(
        "drop",
        description="calls not sampled as `sampling` says (temperature, top_p, penalties, …): left out and counted, or trained on nevertheless, flagged in `policy_calls`; `algorithm: sft` always trains on them",
    )
    truncated: Literal["train", "drop"] = Field(
        "train",
        description="calls whose reply ended at its limit of tokens: trained on, or left out and counted, while their rollout's reward stays in its group (DAPO's overlong filtering)",
    )
    algorithm: str = Field(
        "grpo",
        description="`grpo`: policy gradients on `advantages`, with the losses of `training.loss_type`; `ppo`: the same on the advantages of a critic; `sft`: maximum likelihood on the rollouts that `sft` chooses; or a class of your own, as `package.module:Name` or `file.py:Name` (docs/algorithms.md)",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of the algorithm's own; it checks them (docs/algorithms.md)"
    )
    sft: SftSettings | None = Field(None, description="for `algorithm: sft`; null means the defaults there")
    advantages: str = Field(
        "grpo",
        description="how rewards become advantages: grpo, dr_grpo, rloo, counterfactual, reinforce, reinforce_pp (files of sql/advantages/), or a .sql file of your own",
    )
    min_spread: float = Field(
        0.0,
        ge=0,
        description="groups whose highest and lowest return differ by less are left out, as `little_spread`, because the difference is not worth learning (0: estimators that compare leave out only groups of equal returns)",
    )
    merge: Literal["prefix", "per_call"] = Field(
        "prefix",
        description="`prefix`: calls whose prompt extends the last are one sequence; `per_call`: none are merged",
    )
    too_long: Literal["drop_calls", "drop_rollout"] = Field(
        "drop_calls",
        description="beyond training.max_sequence_tokens: whole calls are left out from the end of a sequence, or the whole rollout",
    )
    max_version_lag: int | None = Field(
        None, ge=0, description="calls sampled more than this many versions ago are left out; null: all are used"
    )
    rewards: dict[str, float] = Field(
        default_factory=dict,
        description="named rewards and their weights in the sum this policy is trained on; empty: as `reward` says for all policies",
    )
    train_every: int = Field(
        1,
        ge=0,
        description="the policy is trained in every N-th epoch; in the others, and always with 0, it stays as it is",
    )
    train_offset: int = Field(
        0,
        ge=0,
        description="first epoch that trains it: `train_every: 2` alone trains in even epochs, with 1 in odd ones",
    )
    sampling: SamplingSettings = SamplingSettings()
    lora: LoraSettings | None = Field(None, description="train an adapter instead of the full weights")
    training: TrainingSettings = TrainingSettings()

    @field_validator("algorithm")
    @classmethod
    def _algorithm(cls, name: str) -> str:
        if name not in algorithms.BUILT_IN and not algorithms.is_own(name):
            raise ValueError(
                f"{name!r} is none of {', '.join(algorithms.BUILT_IN)}, and no class of your own, which is written as `module:Name`"
            )
        return name

    @field_validator("advantages")
    @classmethod
    def _estimator(cls, name: str) -> str:
        return known_or_sql(name, ESTIMATORS)

    @model_validator(mode="after")
    def _schedule(self) -> PolicySettings:
        require_due(self.train_every, self.train_offset, "no epoch would train the policy")
        return self

    @model_validator(mode="after")
    def _ratios_are_of_one_distribution(self) -> PolicySettings:
        """Raise ValueError where `sampling.top_p` would make the importance ratios wrong.

        The logprobs that come back are of the truncated distribution, those of the trainer of the whole one.
        """
        if algorithms.is_own(self.algorithm):
            return self  # it is imported where it is used
        if self.sampling.top_p < 1 and self.train_every > 0 and not self.imitates:
            raise ValueError(
                f"sampling.top_p {self.sampling.top_p} cuts off tokens that the trainer counts, so every importance ratio of "
                f"`algorithm: {self.algorithm}` would be wrong; set it to 1, and lower `temperature` for less random samples (in "
                "evaluation the agent's own top_p stays)"
            )
        return self

    def trains_in(self, epoch: int) -> bool:
        return is_due(epoch, self.train_every, self.train_offset)

    @model_validator(mode="after")
    def _read_by_the_algorithm(self) -> PolicySettings:
        """Raise ValueError for settings that the algorithm would ignore. It compares values, not what was written:
        settings travel between processes with all defaults filled in."""
        if algorithms.is_own(self.algorithm):
            return self
        algorithm = self.made_algorithm
        if self.sft is not None and not algorithm.imitates:
            raise ValueError("only `algorithm: sft` reads `sft:`; set that, or remove `sft:`")
        ignored = ["advantages"] if self.differs("advantages") and algorithm.select() != self.advantages else []
        ignored += ["min_spread"] if self.differs("min_spread") and algorithm.imitates else []
        ignored += [
            f"training.{name}"
            for name in TrainingSettings.model_fields
            if algorithm.reads is not None and name not in algorithm.reads and self.training.differs(name)
        ]
        if algorithm.reads is not None:
            ignored += [
                f"training.trl.{name}"
                for name in self.training.trl
                if name not in (*algorithm.reads, *OF_THE_OPTIMIZER)
            ]
        if ignored:
            raise ValueError(
                f"`algorithm: {self.algorithm}` ignores {', '.join(ignored)}; remove it, or use another algorithm"
            )
        return self

    @property
    def made_algorithm(self) -> Algorithm:
        """Return the algorithm, made anew.

        Raises ValueError for options that it does not know, SettingsError where it cannot be imported.
        """
        return algorithms.load(self.algorithm)(self)

    @property
    def estimator(self) -> str:
        """Return the file of sql/advantages (or of the user's) that decides which rollouts train, and how strongly."""
        return self.made_algorithm.select()

    def require_comparable(self, group_size: int, assign: str) -> None:
        """Raise ValueError where the estimator compares what groups of this size, or rewards given so, do not have."""
        estimator = self.estimator
        if estimator in NEEDS_GROUPS and group_size < 2:
            raise ValueError(
                f"rollout.group_size is 1, but `{estimator}` compares the rollouts of a group; make it 2 or "
                "more, or use `reinforce` or `reinforce_pp`"
            )
        if estimator == "counterfactual" and assign == "final":
            raise ValueError(
                f"policy {self.name!r}: `advantages: counterfactual` compares agents, and with `reward.assign: final` whole "
                "rollouts are compared; set `assign: discounted` with `gamma: 1`, which gives an agent's calls what the "
                "rollout got, or use `rloo`"
            )

    @property
    def imitates(self) -> bool:
        """Return whether its rows are examples, however they were sampled."""
        return algorithms.load(self.algorithm).imitates

    @property
    def examples(self) -> SftSettings:
        return self.sft or SftSettings()

    @property
    def passes(self) -> int:
        """Return how many times an epoch's sequences are trained on, each of `steps_per_epoch` steps."""
        return self.examples.passes if self.imitates else 1
