"""Where rewards come from and which calls they go to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lightning_core.config.section import Name, Section

# What sql/ingest/spans.sql makes of spans, but for `rollout.start`, `rollout.opened` and `rollout.ended`, which are in no tree.
SpanOp = Literal[
    "llm", "tool", "agent", "embedding", "retriever", "reranker", "guardrail", "evaluator", "chain", "workflow", "task",
    "reward", "rollout", "other",
]  # fmt: skip


class AirRule(Section):
    """A reward derived from spans; every given condition has to hold."""

    name: Name = Field(description="names the rule in tables")
    value: float = Field(description="reward of a match")
    op: SpanOp | None = Field(None, description="kind of the span")
    tool: str | None = Field(None, description="regex (RE2) on the tool's name")
    status: Literal["ok", "error", "unset"] | None = None
    attribute: str | None = Field(
        None, description="an attribute of the span, or a column of `spans`; `pattern` is searched in it"
    )
    pattern: str | None = Field(None, description="regex (RE2); without `attribute`: searched in the tool's result")
    before_limit: int | None = Field(
        None,
        ge=1,
        description="tokens; only LLM calls match, and are given the value by degrees: nothing up to so many tokens before their limit (`max_tokens`), all of it at the limit (with `value: -1` DAPO's soft overlong punishment)",
    )
    per: Literal["match", "rollout"] = Field(
        "match", description="`match`: for every span that matches; `rollout`: once, however many match"
    )
    cap: float | None = Field(
        None, ge=0, description="largest sum, in absolute value, that the rule gives to one rollout"
    )

    @model_validator(mode="after")
    def _conditions(self) -> AirRule:
        if self.before_limit and self.op not in (None, "llm"):
            raise ValueError(
                f"rule {self.name!r} has `before_limit`, which only LLM calls have; remove `op: {self.op}`"
            )
        if not any((self.op, self.tool, self.status, self.attribute, self.pattern, self.before_limit)):
            raise ValueError(f"rule {self.name!r} has no condition, so every span would match; set op, tool, status, …")
        return self


class RewardSettings(Section):
    grader: str | None = Field(
        None,
        description="`module:function` called with (task, output, spans), or a .sql file; without a grader the agent emits the rewards",
    )
    failure_reward: float | None = Field(
        0.0,
        description="reward of an attempt that failed by the agent's fault; null leaves the attempt out of training",
    )
    assign: Literal["final", "nearest", "discounted"] = Field(
        "final",
        description="`final`: the rollout's reward, to every call; `nearest`: each reward goes to the latest call of the same agent that ended before it and has no reward; `discounted`: the sum of the agent's rewards from the call on, discounted by gamma for each call",
    )
    gamma: float | None = Field(None, ge=0, le=1, description="discount for each call, for `discounted`")
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="named rewards and their weights in the sum; empty: the last reward named `reward`, or else the last of any name",
    )
    reward_match: str | None = Field(None, description="regex (RE2): only rewards emitted under a matching agent count")
    air: Literal["off", "default"] | list[AirRule] = Field(
        "off",
        description="rules that derive rewards from spans (automatic intermediate rewards); `default`: the shipped rules",
    )

    @model_validator(mode="after")
    def _discount(self) -> RewardSettings:
        if (self.assign == "discounted") != (self.gamma is not None):
            raise ValueError("`assign: discounted` and `gamma` belong together: give both, or neither")
        if self.grader is not None and self.reward_match is not None:
            raise ValueError(
                "`reward_match` selects rewards by agent, and a grader is no agent, so no reward would count; drop one"
            )
        names = [rule.name for rule in self.air] if isinstance(self.air, list) else []
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules of `air` are called {name!r}; give each its own name")
        return self
