"""Every setting a user can make. Unknown keys are errors; so are values that contradict each other.

Sections:
    agents.py      agent, tasks, rollouts            rewards.py     rewards, and the calls they go to
    policies.py    what is trained, on which calls   training.py    how one policy is trained
    learning.py    production, finetuning, alarm      cluster.py     where rollouts and SQL run
    serving.py     gateway, receivers, vLLM          storage.py     what is kept of spans and policies
    trl.py         settings that only TRL reads      section.py     what every section is
    prompts.py     prompts of the agent              prompt_search.py  the search for better ones
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lightning_core import algorithms
from lightning_core.config.agents import AgentSettings, LimitSettings, RolloutSettings, TaskSettings
from lightning_core.config.cluster import ClusterSettings, loopback
from lightning_core.config.learning import AlarmSettings, FinetuneSettings
from lightning_core.config.policies import (
    ANY_NAME,
    LoraSettings,
    PolicySettings,
    SamplingSettings,
)
from lightning_core.config.prompt_search import PromptSearchSettings
from lightning_core.config.prompts import PromptSettings
from lightning_core.config.rewards import AirRule, RewardSettings
from lightning_core.config.section import Name, Section, SettingsError
from lightning_core.config.serving import GatewaySettings, UpstreamSettings, VllmSettings
from lightning_core.config.storage import AgentRule, LakeSettings, RedactionPattern, StoreSettings
from lightning_core.config.training import TrainingSettings


class EvaluationSettings(Section):
    every: int = Field(1, ge=0, description="epochs between evaluations; 0: never")
    limit: int | None = Field(None, ge=1, description="use only the first N held-out tasks")
    rollouts_per_task: int = Field(
        1, ge=1, description="rollouts of each held-out task; pass@k is reported up to this k"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="`train` stops after this many evaluations in a row without a better one; null: never",
    )
    success_reward: float = Field(1.0, description="an evaluation rollout with at least this reward counts as right")
    max_tokens: int | None = Field(None, ge=1, description="limit of a call's tokens in evaluation")


class TrackingSettings(Section):
    backends: list[str] = Field(
        ["mlflow", "console", "prometheus"],
        description="where the signals of each epoch are reported: `mlflow`, `console`, `prometheus` (reads them from the gateway's `/metrics`), or a function of your own, as `module:function` or `file.py:function` (docs/algorithms.md)",
    )
    mlflow_uri: str | None = Field(None, description="default: a SQLite file in `home`")
    traces: int = Field(
        20,
        ge=0,
        description="rollouts of an epoch that MLflow gets as traces, with messages and rewards: a third of the worst, a third of the best, others at random; 0: none",
    )

    @field_validator("backends")
    @classmethod
    def _known_backends(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in ("mlflow", "console", "prometheus") and ":" not in name:
                raise ValueError(
                    f"{name!r} is none of mlflow, console, prometheus, and no function of your own, which is written as `module:function`"
                )
        return names

    @property
    def own_backends(self) -> list[str]:
        """Return the backends that are functions of the user's."""
        return [name for name in self.backends if ":" in name]


class Settings(Section):
    """The settings of a run."""

    run: Name = Field("default", description="name of the run; the same name continues it")
    home: Path = Field(Path("var"), description="folder for everything a run writes")
    models: Path | None = Field(
        None,
        description="folder, shared by all runs, for models that come from a package or that you put there (models of the hub are in its own cache); null: the user's cache, `lightning-flows/models` in `$XDG_CACHE_HOME` or `~/.cache`",
    )
    seed: int = 0
    epochs: int = Field(4, ge=1, description="number of epochs that `train` runs")
    async_level: Literal[0, 1] = Field(
        0,
        description="1: the rollouts of the next epoch run during training, with the version that the training starts from, so they are one version old when they are trained on; 0: one after the other",
    )
    agent: AgentSettings
    tasks: TaskSettings
    prompts: dict[Name, PromptSettings] = Field(
        default_factory=dict, description="prompts of the agent, by name: versioned like weights (docs/prompts.md)"
    )
    rollout: RolloutSettings = RolloutSettings()
    cluster: ClusterSettings = ClusterSettings()
    reward: RewardSettings = RewardSettings()
    policies: list[PolicySettings] = Field(default_factory=lambda: [PolicySettings()], min_length=1)
    frozen: list[Name] = Field(
        default_factory=list,
        description="model names of agents that are not trained: the base model answers them, sampled as the agent asks",
    )
    training_devices: list[str] = Field(
        default_factory=list,
        description="values of CUDA_VISIBLE_DEVICES, one for each policy trained at the same time; empty: policies are trained one after another",
    )
    evaluation: EvaluationSettings = EvaluationSettings()
    alarm: AlarmSettings = AlarmSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    prompt_search: PromptSearchSettings | None = Field(
        None, description="how `optimize-prompts` searches for better versions of `prompts`; null: it does not"
    )
    agent_rules: list[AgentRule] = Field(
        default_factory=list, description="where spans hold agents' names; used before the built-in conventions"
    )
    lake: LakeSettings = LakeSettings()
    store: StoreSettings = StoreSettings()
    gateway: GatewaySettings = GatewaySettings()
    vllm: VllmSettings = VllmSettings()
    tracking: TrackingSettings = TrackingSettings()

    @field_validator("policies")
    @classmethod
    def _policies(cls, policies: list[PolicySettings]) -> list[PolicySettings]:
        names = [p.name for p in policies]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two policies are called {name!r}; routing is by name, so give each its own")
        taking = [p.name for p in policies if p.examples.without_ids == "tokenize"]
        if len(taking) > 1:
            raise ValueError(
                f"`sft.without_ids: tokenize` of {' and '.join(taking)}: a call without token ids can train one; leave it to one policy"
            )
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
    def _names_lead_to_one_model(self) -> Settings:
        taken = {p.name: "a policy" for p in self.policies}
        for model in (m for upstream in self.gateway.upstreams for m in upstream.models):
            if model in taken:
                raise ValueError(
                    f"{model!r} is {taken[model]} and a model of an upstream; calls are routed by that name"
                )
            taken[model] = "a model of an upstream"
        full = [p.name for p in self.policies if p.lora is None]
        if full and self.frozen:
            raise ValueError(
                f"policy {full[0]!r} trains full weights, so its vLLM cannot serve the frozen model {self.frozen[0]!r} "
                "too; give the policy a `lora:` section, or serve the frozen model elsewhere and name it under "
                "`gateway.upstreams`"
            )
        for name in self.frozen:
            if name in taken:
                raise ValueError(
                    f"`frozen` has {name!r}, which is also {taken[name]}, or there twice; calls are routed by that name"
                )
            taken[name] = "a frozen model"
        self._aliases_are_nobody_elses(taken)
        return self

    def _aliases_are_nobody_elses(self, taken: dict[str, str]) -> None:
        seen: dict[str, str] = {}
        for number, policy in enumerate(self.policies):
            place = f"policies.{number}.aliases"
            for alias in policy.aliases:
                name, at, _ = alias.partition("@")
                exact = taken.get(alias, "a version of a policy" if at and taken.get(name) == "a policy" else None)
                if exact is not None:
                    raise ValueError(
                        f"`{place}` has {alias!r}, which is {exact}; exact names come first, so the alias would never "
                        "answer: remove it there"
                    )
                if alias in seen:
                    raise ValueError(
                        f"`{place}` has {alias!r}, which `{seen[alias]}` has too; a name leads to one policy: keep it "
                        "in one of them, once"
                    )
                seen[alias] = place

    def training_only(self, names: Sequence[str]) -> Settings:
        """Return the settings with all other policies never trained; without names unchanged.

        Raises SettingsError for an unknown name.
        """
        there = [policy.name for policy in self.policies]
        for name in names:
            if name not in there:
                raise SettingsError(f"there is no policy {name!r} to train; the settings have {', '.join(there)}")
        never = {"train_every": 0, "train_offset": 0} if names else {}
        policies = [p if p.name in names else p.model_copy(update=never) for p in self.policies]
        return self.model_copy(update={"policies": policies})

    @property
    def aliases(self) -> dict[str, str]:
        """Return by alias the policy that answers under it."""
        return {alias: policy.name for policy in self.policies for alias in policy.aliases}

    @model_validator(mode="after")
    def _workers_reach_the_gateway(self) -> Settings:
        if self.cluster.elsewhere and loopback(self.gateway.host):
            raise ValueError(
                f"agents on the machines of cluster.address {self.cluster.address!r} cannot reach a gateway on "
                f"{self.gateway.host!r}; set `gateway.host` to an address of this machine that they reach"
            )
        return self

    @model_validator(mode="after")
    def _alarm_can_sound(self) -> Settings:
        if self.alarm.kl_above is not None and not any(p.training.beta > 0 for p in self.policies):
            raise ValueError(
                "alarm.kl_above needs a KL, which is measured only if `training.beta` is above 0; set that"
            )
        return self

    @property
    def evaluates(self) -> bool:
        """Return whether `train` tries held-out tasks."""
        return self.tasks.evaluate is not None and self.evaluation.every > 0

    def evaluates_after(self, epochs: int) -> bool:
        """Return whether `train` tries them after so many epochs: before training, every so many, and at the end."""
        return self.evaluates and (epochs % self.evaluation.every == 0 or epochs == self.epochs)

    def searches_before(self, epoch: int) -> bool:
        """Return whether `train` searches for better prompts before this epoch."""
        return self.prompt_search is not None and self.prompt_search.searches_before(epoch)

    @model_validator(mode="after")
    def _can_search(self) -> Settings:
        if self.prompt_search is None or self.prompt_search.train_every == 0:
            return self
        missing = "prompts" if not self.prompts else "tasks.evaluate" if self.tasks.evaluate is None else None
        if missing is not None:
            raise ValueError(f"prompt_search.train_every needs `{missing}`; docs/prompts.md says what for")
        if self.async_level > 0:
            raise ValueError(
                "`async_level: 1` rolls out an epoch while the one before is trained, so a search between them would come too "
                "late; use `async_level: 0`, or `prompt_search.train_every: 0`"
            )
        return self

    @model_validator(mode="after")
    def _what_needs_evaluations_has_some(self) -> Settings:
        needing = {"alarm.reward_drop": self.alarm.reward_drop, "evaluation.patience": self.evaluation.patience}
        for name, value in needing.items():
            if value is not None and not self.evaluates:
                raise ValueError(f"{name} needs evaluations: set `tasks.evaluate`, and `evaluation.every` above 0")
        return self

    @model_validator(mode="after")
    def _rates_fall(self) -> Settings:
        for policy in self.policies:
            passes = 1 if algorithms.is_own(policy.algorithm) else policy.passes
            training, steps = policy.training, self.epochs * policy.training.steps_per_epoch * passes
            if training.lr_schedule != "constant" and training.warmup_steps >= steps:
                raise ValueError(
                    f"policy {policy.name!r} warms up for {training.warmup_steps} of the run's {steps} optimizer steps, so "
                    f"`lr_schedule: {training.lr_schedule}` would never fall; lower `warmup_steps`, or use `constant`"
                )
        return self

    @model_validator(mode="after")
    def _devices_are_enough(self) -> Settings:
        for policy in self.policies:
            processes = policy.training.processes
            for devices in self.training_devices if policy.training.accelerate_config is None else ():
                if len(devices.split(",")) != processes:
                    raise ValueError(
                        f"training_devices has {devices!r}, and policy {policy.name!r} is trained by {processes} processes, one "
                        "device each; give it that many devices, or change `training.processes`"
                    )
        return self

    @model_validator(mode="after")
    def _overlap(self) -> Settings:
        if self.async_level == 0:
            return self
        if self.vllm.colocated:
            raise ValueError(
                "`async_level: 1` samples while a policy is trained, and `vllm.colocated` puts vLLM to sleep then; give vLLM a "
                "device of its own and `colocated: false`, or use `async_level: 0`"
            )
        for policy in self.policies:
            if policy.max_version_lag == 0:
                raise ValueError(
                    f"`async_level: 1` trains on calls that are a version old, and policy {policy.name!r} leaves all of them out "
                    "(`max_version_lag: 0`); make that 1 or more, or use `async_level: 0`"
                )
            training = policy.training
            corrected = training.corrected or training.steps_per_epoch > 1
            if not corrected and (algorithms.is_own(policy.algorithm) or not policy.imitates):
                raise ValueError(
                    f"`async_level: 1` trains policy {policy.name!r} on calls of an older version, and with one step an epoch "
                    "nothing corrects for that; set `training.importance_correction`, for example to `token_truncate`, or use "
                    "`async_level: 0`"
                )
        return self

    @model_validator(mode="after")
    def _comparable(self) -> Settings:
        for policy in self.policies:
            if not algorithms.is_own(policy.algorithm):  # which is imported where it is used
                policy.require_comparable(self.rollout.group_size, self.reward.assign)
        return self


__all__ = [
    "ANY_NAME",
    "AgentRule",
    "AgentSettings",
    "AirRule",
    "AlarmSettings",
    "ClusterSettings",
    "FinetuneSettings",
    "GatewaySettings",
    "LakeSettings",
    "LimitSettings",
    "LoraSettings",
    "Name",
    "PolicySettings",
    "PromptSettings",
    "RedactionPattern",
    "RewardSettings",
    "SamplingSettings",
    "Settings",
    "SettingsError",
    "TaskSettings",
    "TrainingSettings",
    "UpstreamSettings",
    "VllmSettings",
]
