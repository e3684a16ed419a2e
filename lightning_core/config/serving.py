"""The gateway, and vLLM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lightning_core.config.section import Name, Section


class UpstreamSettings(Section):
    """An OpenAI-compatible API for models that are not trained: a judge, an embedder."""

    name: Name
    base_url: str = Field(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$", description="as for OpenAI's client: with /v1")
    api_key_env: str | None = Field(
        None, description="variable of the gateway's environment that holds its key, which is never stored or logged"
    )
    models: list[str] = Field(min_length=1, description="model names that are sent there, as they are")


class GatewaySettings(Section):
    """The gateway: model calls and OTLP spans, in one process, on loopback unless told otherwise."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="0: any free port")
    grpc_port: int | None = Field(0, ge=0, le=65535, description="OTLP/gRPC; 0: any free port, null: no gRPC")
    spool_max_gb: float = Field(4.0, gt=0, description="spans not yet decoded; past it the gateway answers 503")
    max_body_mb: float = Field(64.0, gt=0, le=512)
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
        description="a JSON line a call in the gateway's log: none, without any text of it, or with its messages",
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
    max_num_seqs: int = Field(64, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto`: float32 on a CPU, on a GPU as vLLM chooses"
    )
    colocated: bool | None = Field(
        None,
        description="vLLM gives its GPU's memory back while a policy is trained (sleep mode); needs CUDA; null: where "
        "training has a GPU in common with it (`devices`, `training_devices`)",
    )
    replicas: int = Field(
        1,
        ge=1,
        description="vLLMs that serve the same; new versions are rolled from one to the next while the others serve",
    )
    devices: list[str] = Field(
        default_factory=list,
        description="values of CUDA_VISIBLE_DEVICES, one a replica; empty: all replicas see what the flow sees",
    )
    lora_slots: int | None = Field(
        None,
        ge=1,
        description="adapters loaded at one time; null: two a policy (a version and the one before it) and one more",
    )
    extra_args: list[str] = Field(default_factory=list, description="appended to vLLM's command line")

    @model_validator(mode="after")
    def _a_device_each(self) -> VllmSettings:
        if self.devices and len(self.devices) != self.replicas:
            raise ValueError(
                f"`vllm.devices` has {len(self.devices)} and `vllm.replicas` is {self.replicas}; give each replica its own, or leave it out"
            )
        return self

    def device(self, replica: int) -> str | None:
        """The CUDA_VISIBLE_DEVICES of a replica; None: that of the flow."""
        return self.devices[replica] if replica < len(self.devices) else None
