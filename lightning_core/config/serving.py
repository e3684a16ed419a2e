"""The gateway, and vLLM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lightning_core.config.section import Name, Section


class UpstreamSettings(Section):
    """An OpenAI-compatible API for models that are not trained: a judge, an embedder."""

    name: Name
    base_url: str = Field(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$", description="as for OpenAI's client, with /v1")
    api_key_env: str | None = Field(
        None, description="environment variable of the gateway that holds the API key, which is never stored or logged"
    )
    models: list[str] = Field(min_length=1, description="model names whose calls go there, with the name unchanged")


class GatewaySettings(Section):
    """The gateway: model calls and OTLP spans in one process, on loopback by default."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="0: any free port")
    grpc_port: int | None = Field(0, ge=0, le=65535, description="OTLP/gRPC; 0: any free port, null: no gRPC")
    spool_max_gb: float = Field(
        4.0, gt=0, description="limit of spans not yet decoded; beyond it the gateway answers 503"
    )
    max_body_mb: float = Field(64.0, gt=0, le=512)
    trust_loopback: bool = Field(
        False,
        description="what this machine sends without a token counts for the rollout that its attributes name: for exporters that pass on neither; any process here can then reward any rollout",
    )
    metrics_need_secret: bool = Field(
        False,
        description="`/health` and `/metrics` are answered only to who sends the gateway's secret as a bearer token",
    )
    upstreams: list[UpstreamSettings] = Field(
        default_factory=list, description="APIs of models that are not trained; calls are routed by model name"
    )
    version_change: Literal["follow", "refuse"] = Field(
        "follow",
        description="what happens to a rollout's calls when its policy's version is no longer served: `follow`: the new version answers (the span says so); `refuse`: 409",
    )
    media_urls: Literal["data", "public", "any"] = Field(
        "data",
        description="URLs of images, audio and video that messages may have: only `data:`, also http(s) at public addresses, or any",
    )
    calls_per_rollout: int | None = Field(None, ge=1, description="limit of an attempt's calls; beyond it 429")
    tokens_per_rollout: int | None = Field(
        None, ge=1, description="limit of an attempt's prompt and response tokens; beyond it 429"
    )
    concurrent_per_rollout: int = Field(
        64, ge=1, description="limit of an attempt's calls at one time; further ones wait"
    )
    waiting_per_rollout: int = Field(256, ge=0, description="limit of an attempt's waiting calls; beyond it 429")
    most_calls: int = Field(
        8192, ge=1, description="limit of all calls at one time, waiting ones included; beyond it 503"
    )
    client_stalled_s: float = Field(
        60, gt=0, description="a call is ended after its client has read nothing of the reply for this many seconds"
    )
    log_calls: Literal["off", "facts", "text"] = Field(
        "facts",
        description="a JSON line for each call in the gateway's log: none, without the call's text, or with its messages",
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


class VllmSettings(Section):
    kv_cache_gb: float = Field(0.5, gt=0, description="memory for the KV cache (CPU build)")
    max_model_len: int = Field(2048, ge=64)
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="calls that are computed at the same time; null: 64 on a CPU, on a GPU as many as vLLM takes a card of its size for",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="`auto`: on a GPU as vLLM chooses, on a CPU bfloat16 if it multiplies it, else float32; the trainer computes in the same (`training.bf16`)",
    )
    head_in_float32: bool = Field(
        False,
        description="the LM head computes in float32, in vLLM and in training by policy gradients: with all else in bf16, their logprobs differ less (slow on a CPU)",
    )
    colocated: bool | None = Field(
        None,
        description="vLLM releases its GPU's memory while a policy is trained (sleep mode); needs CUDA; null: only if "
        "training shares a GPU with it (`devices`, `training_devices`)",
    )
    replicas: int = Field(
        1,
        ge=1,
        description="number of vLLMs that serve the same models; a new version reaches one after the other while the rest serve",
    )
    devices: list[str] = Field(
        default_factory=list,
        description="values of CUDA_VISIBLE_DEVICES, one a replica; empty: all replicas see the flow's devices",
    )
    lora_slots: int | None = Field(
        None,
        ge=1,
        description="number of adapters loaded at one time; null: two a policy (a version and the one before it) and one more",
    )
    extra_args: list[str] = Field(default_factory=list, description="appended to vLLM's command line")

    @model_validator(mode="after")
    def _a_device_each(self) -> VllmSettings:
        if self.devices and len(self.devices) != self.replicas:
            raise ValueError(
                f"`vllm.devices` has {len(self.devices)} and `vllm.replicas` is {self.replicas}; give each replica its own, or leave `devices` out"
            )
        return self

    def device(self, replica: int) -> str | None:
        """Return the CUDA_VISIBLE_DEVICES of a replica; None: that of the flow."""
        return self.devices[replica] if replica < len(self.devices) else None
