"""Every setting a user can make. Unknown keys are errors; so are values that contradict each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NEEDS_GROUPS = ("grpo", "dr_grpo", "rloo")
ESTIMATORS = (*NEEDS_GROUPS, "reinforce", "reinforce_pp")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]


class SettingsError(ValueError):
    """A settings file that cannot be used: the message names the file, the key and the remedy."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, title=None, allow_inf_nan=False)


class AgentSettings(_Section):
    """The agent, as it is: a Python callable or any command."""

    callable: str | None = Field(
        None, description="`package.module:function` or `path/to/file.py:function`; called with the task"
    )
    command: str | list[str] | None = Field(
        None, description="a command line; gets the task as JSON on stdin and in $LIGHTNING_TASK"
    )
    working_directory: Path | None = Field(
        None, description="where the agent runs; default: where the flow was started"
    )
    environment: dict[str, str] = Field(default_factory=dict, description="extra environment variables")
    pass_environment: list[str] = Field(
        default_factory=list,
        description="variables handed on from the flow's own environment by name (secrets); never stored",
    )
    timeout_s: float = Field(
        120, gt=0, description="seconds until an attempt is ended and counted as the agent's failure"
    )
    preload: list[str] = Field(
        default_factory=lambda: [
            "openai",
            "opentelemetry.sdk.trace.export",
            "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        ],
        description="modules the process pool imports once, before the first attempt of a callable",
    )

    @model_validator(mode="after")
    def _one_of(self) -> AgentSettings:
        if (self.callable is None) == (self.command is None):
            raise ValueError("give exactly one of `callable` and `command`")
        if self.callable is not None and ":" not in self.callable:
            raise ValueError(f"callable {self.callable!r}: write it as `module:function` or `path/to/file.py:function`")
        return self


class TaskSettings(_Section):
    """Where tasks come from: `module:function` (returns a list of dicts) or a .jsonl / .json / .parquet file."""

    train: str = Field(description="tasks to train on")
    evaluate: str | None = Field(None, description="held-out tasks; without them nothing is evaluated")
    id_field: str = Field("id", description="field that names a task; where it is missing the row number does")


class RolloutSettings(_Section):
    tasks_per_epoch: int = Field(
        8, ge=1, description="tasks drawn (in a seeded order, without repeats until all were seen)"
    )
    group_size: int = Field(8, ge=1, description="rollouts of each task")
    concurrency: int = Field(16, ge=1, description="attempts that run at the same time, over all shards")
    shards: int = Field(4, ge=1, description="Prefect tasks the rollouts of an epoch are spread over")
    retries: int = Field(
        2, ge=0, description="further attempts after a failure of the infrastructure (never after the agent's)"
    )


# What sql/ingest/spans.sql makes of spans, but for `rollout.start`, which is in no tree.
SpanOp = Literal[
    "llm",
    "tool",
    "agent",
    "embedding",
    "retriever",
    "reranker",
    "guardrail",
    "evaluator",
    "chain",
    "workflow",
    "task",
    "reward",
    "rollout",
    "other",
]


class AirRule(_Section):
    """A reward for what spans show; every condition that is given has to hold."""

    name: Name = Field(description="names the rule in tables")
    value: float = Field(description="reward of a match")
    op: SpanOp | None = Field(None, description="what the span is")
    tool: str | None = Field(None, description="regex (RE2) on the tool's name")
    status: Literal["ok", "error", "unset"] | None = None
    attribute: str | None = Field(
        None, description="any attribute of the span, or column of `spans`; `pattern` is searched in it"
    )
    pattern: str | None = Field(None, description="regex (RE2); without `attribute`: searched in the tool's result")
    per: Literal["match", "rollout"] = Field("match", description="`rollout`: once, however many spans match")
    cap: float | None = Field(None, ge=0, description="largest sum, in absolute value, that the rule gives a rollout")

    @model_validator(mode="after")
    def _conditions(self) -> AirRule:
        if not any((self.op, self.tool, self.status, self.attribute, self.pattern)):
            raise ValueError(
                f"rule {self.name!r} has no condition, so every span would match; give op, tool, status, …"
            )
        return self


class RewardSettings(_Section):
    grader: str | None = Field(
        None,
        description="`module:function` called with (task, output, spans), or a .sql file; without it the agent emits rewards",
    )
    failure_reward: float | None = Field(
        0.0, description="reward of an attempt the agent failed; null leaves it out of training"
    )
    assign: Literal["final", "nearest", "discounted"] = Field(
        "final",
        description="`final`: the rollout's last reward, to every call; `nearest`: each reward to the latest call of the same agent that ended before it and has none; `discounted`: the agent's rewards from the call on, times gamma a call",
    )
    gamma: float | None = Field(None, ge=0, le=1, description="discount a call, for `discounted`")
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="named rewards and their weights in the sum; empty: the one named `reward`, or else the last",
    )
    reward_match: str | None = Field(
        None, description="regex (RE2): only rewards emitted under an agent it matches count"
    )
    air: Literal["off", "default"] | list[AirRule] = Field(
        "off",
        description="rules that reward what spans show (automatic intermediate rewards); `default`: those shipped",
    )

    @model_validator(mode="after")
    def _discount(self) -> RewardSettings:
        if (self.assign == "discounted") != (self.gamma is not None):
            raise ValueError("`assign: discounted` and `gamma` belong together: give both, or neither")
        if self.grader is not None and self.reward_match is not None:
            raise ValueError("`reward_match` is about agents, and a grader is none: no reward would count; drop one")
        names = [rule.name for rule in self.air] if isinstance(self.air, list) else []
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules of `air` are called {name!r}; a rule is known by its name")
        return self


class SamplingSettings(_Section):
    """What the policy samples with in training, whatever the agent asked for."""

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, description="upper limit; a smaller one the agent asks for stays")


class LoraSettings(_Section):
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class TrainingSettings(_Section):
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


class PolicySettings(_Section):
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


class EvaluationSettings(_Section):
    every: int = Field(1, ge=0, description="epochs between evaluations; 0: never")
    limit: int | None = Field(None, ge=1, description="first so many held-out tasks")
    success_reward: float = Field(1.0, description="an evaluation rollout counts as right from this reward on")
    max_tokens: int | None = Field(None, ge=1, description="upper limit of a call's tokens in evaluation")


class AgentRule(_Section):
    """Where an agent's name stands, for conventions that sql/hierarchy/agent_rules.sql does not know."""

    source: Literal["attribute", "span_name", "resource"] = "attribute"
    key: str | None = Field(None, description="attribute (or resource attribute) that holds the name")
    pattern: str = Field("^(.+)$", description="regex (RE2); its first group is the name")
    when: str | None = Field(None, description="regex (RE2) on the span's name; the rule holds for these only")

    @model_validator(mode="after")
    def _has_a_name(self) -> AgentRule:
        if (self.source == "span_name") != (self.key is None):
            raise ValueError(
                f"`source: {self.source}` " + ("takes no `key`" if self.key else "needs a `key` to look at")
            )
        if not re.search(r"(?<!\\)\((?!\?:)", self.pattern):
            raise ValueError(f"pattern {self.pattern!r} has no group; the name is what stands in the first one: (…)")
        return self


class RedactionPattern(_Section):
    pattern: str = Field(description="regex (RE2)")
    replacement: str = Field("[redacted]", description=r"what stands there instead; \\1 is the first group")


class LakeSettings(_Section):
    """What is kept of spans, and how long."""

    redact: list[RedactionPattern] = Field(
        default_factory=list, description="rewritten in every text of a span before it reaches Parquet"
    )
    redact_with: str | None = Field(
        None, description="`module:function`: gets a text, returns what is kept of it; after the patterns"
    )
    keep_days: float | None = Field(
        None, gt=0, description="spans older than this are removed by `lightning-flows lake retain`; null: none are"
    )


class StoreSettings(_Section):
    """Versions of the policies on disk."""

    collect: bool = Field(
        False,
        description="after every epoch remove versions that nothing needs; what stays: docs/policies.md. Off: all stay",
    )
    keep_every: int | None = Field(
        None, ge=1, description="with `collect`: every so-many-th version stays; null: none for its number's sake"
    )

    @model_validator(mode="after")
    def _collects(self) -> StoreSettings:
        if self.keep_every is not None and not self.collect:
            raise ValueError("`keep_every` without `collect: true` keeps nothing, since all versions stay; give both")
        return self


class UpstreamSettings(_Section):
    """An OpenAI-compatible API for models that are not trained: a judge, an embedder."""

    name: Name
    base_url: str = Field(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$", description="as for OpenAI's client: with /v1")
    api_key_env: str | None = Field(
        None, description="variable of the server's environment that holds its key, which is never stored or logged"
    )
    models: list[str] = Field(min_length=1, description="model names that are sent there, as they are")


class GatewaySettings(_Section):
    """What the gateway allows, and where it sends calls."""

    upstreams: list[UpstreamSettings] = Field(
        default_factory=list, description="APIs of models that are not trained, by model name"
    )
    version_change: Literal["follow", "refuse"] = Field(
        "follow",
        description="a rollout's calls when its policy's version is no longer served: answered by the new one (the span says so), or refused with 409",
    )
    media_urls: Literal["data", "public", "any"] = Field(
        "data",
        description="images, audio and video in messages: only `data:` URLs, also http(s) at public addresses, or any",
    )
    calls_per_rollout: int | None = Field(None, ge=1, description="calls of one attempt; past it 429")
    tokens_per_rollout: int | None = Field(
        None, ge=1, description="prompt and response tokens of one attempt; past it 429"
    )
    concurrent_per_rollout: int = Field(64, ge=1, description="calls of one attempt at one time; more of them wait")
    waiting_per_rollout: int = Field(256, ge=0, description="calls of one attempt that wait; past it 429")
    most_calls: int = Field(8192, ge=1, description="calls at one time, waiting ones included; past it 503")
    client_stalled_s: float = Field(
        60, gt=0, description="seconds in which a client takes nothing of its reply, before its call is ended"
    )
    log_calls: Literal["off", "facts", "text"] = Field(
        "facts",
        description="a JSON line a call in the server's log: none, without any text of it, or with its messages",
    )

    @field_validator("upstreams")
    @classmethod
    def _upstreams(cls, upstreams: list[UpstreamSettings]) -> list[UpstreamSettings]:
        for what, names in (
            ("upstreams are called", [u.name for u in upstreams]),
            ("upstreams serve", [m for u in upstreams for m in u.models]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"two {what} {name!r}; give each its own")
        return upstreams


class ServerSettings(_Section):
    """Gateway and OTLP receiver: one process, on loopback unless told otherwise."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="0: any free port")
    grpc_port: int | None = Field(0, ge=0, le=65535, description="OTLP/gRPC; 0: any free port, null: no gRPC")
    spool_max_gb: float = Field(4.0, gt=0, description="spans not yet decoded; past it the server answers 503")
    max_body_mb: float = Field(64.0, gt=0, le=512)
    gateway: GatewaySettings = GatewaySettings()


class VllmSettings(_Section):
    kv_cache_gb: float = Field(0.5, gt=0, description="memory for the KV cache (CPU build)")
    max_model_len: int = Field(2048, ge=64)
    max_num_seqs: int = Field(64, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    start_timeout_s: float = Field(600, gt=0)
    extra_args: list[str] = Field(default_factory=list, description="appended to vLLM's command line")


class TrackingSettings(_Section):
    mlflow_uri: str | None = Field(None, description="default: a SQLite file in `home`")
    experiment: str = "lightning-flows"


class Settings(_Section):
    """The settings of a run."""

    run: Name = Field("default", description="name of the run; the same name continues it")
    home: Path = Field(Path("var"), description="folder for everything a run writes")
    models: Path = Field(Path("var/models"), description="folder for models that are fetched, shared by all runs")
    seed: int = 0
    epochs: int = Field(4, ge=1, description="epochs `train` runs")
    agent: AgentSettings
    tasks: TaskSettings
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardSettings = RewardSettings()
    policies: list[PolicySettings] = Field(default_factory=lambda: [PolicySettings()], min_length=1)
    evaluation: EvaluationSettings = EvaluationSettings()
    agent_rules: list[AgentRule] = Field(
        default_factory=list, description="where agents' names stand, before the conventions that are known"
    )
    lake: LakeSettings = LakeSettings()
    store: StoreSettings = StoreSettings()
    server: ServerSettings = ServerSettings()
    vllm: VllmSettings = VllmSettings()
    tracking: TrackingSettings = TrackingSettings()

    @field_validator("policies")
    @classmethod
    def _policies(cls, policies: list[PolicySettings]) -> list[PolicySettings]:
        names = [p.name for p in policies]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two policies are called {name!r}; routing is by name, so give each its own")
        if len(policies) > 1:
            full = [p.name for p in policies if p.lora is None]
            if full:
                raise ValueError(
                    f"policy {full[0]!r} trains full weights and cannot share a vLLM with another policy; "
                    "give every policy a `lora:` section on the same base model"
                )
            if len({p.model for p in policies}) > 1:
                raise ValueError("LoRA policies on one vLLM need the same `model`")
        return policies

    @model_validator(mode="after")
    def _model_names(self) -> Settings:
        taken = {model for upstream in self.server.gateway.upstreams for model in upstream.models}
        for policy in self.policies:
            if policy.name in taken:
                raise ValueError(
                    f"{policy.name!r} is a policy and a model of an upstream; calls are routed by that name"
                )
        return self

    @model_validator(mode="after")
    def _groups(self) -> Settings:
        for policy in self.policies:
            if policy.advantages in NEEDS_GROUPS and self.rollout.group_size < 2:
                raise ValueError(
                    f"rollout.group_size is 1, but `{policy.advantages}` compares the rollouts of a group; make it 2 or "
                    "more, or take `reinforce` or `reinforce_pp`"
                )
        return self
